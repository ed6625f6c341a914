"""Small networks with norms that do something, and what folding them must and must not do."""

import copy

import torch
from torch import nn

import pollard

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def settled(model: nn.Module, density: float = 0.3, storage: str = "compressed", **options) -> nn.Module:
    """In eval mode, with norms that do something, and sparse."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
                norm.running_mean.normal_(generator=generator)
                norm.running_var.uniform_(0.5, 2, generator=generator)
                if norm.affine:
                    norm.weight.normal_(1, 0.3, generator=generator)
                    norm.bias.normal_(generator=generator)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", density, **options), storage=storage)
    return model.eval()


def seeded(make) -> nn.Module:
    torch.manual_seed(0)
    return make()


def folds(model: nn.Module, x: torch.Tensor, **tolerance: float):
    """What folding did to the model, whose outputs it did not change."""
    with torch.no_grad():
        expected = model(x)
        folding = pollard.fold_norms_(model)
        torch.testing.assert_close(model(x), expected, **tolerance)
    return folding


def stays(model: nn.Module, x: torch.Tensor, why: str) -> None:
    before, state = str(model), copy.deepcopy(model.state_dict())
    folding = folds(model, x, rtol=0, atol=0)
    assert not folding.norms
    assert not folding.activations
    assert all(why in told for told in folding.left.values()), folding
    assert str(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def norms_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


class Wired(nn.Module):
    """Two norms behind two layers, called as a function says."""

    def __init__(self, forward):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm, self.relu = nn.BatchNorm1d(6), nn.ReLU()
        self.wiring = forward

    def forward(self, x):
        return self.wiring(self, x)


def wired(forward) -> nn.Module:
    return settled(seeded(lambda: Wired(forward)))
