"""What a convolution made of a linear layer has that torch's has not: a ReLU behind its bias, on whichever way it is computed."""

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput

WAYS = ["kernels", "hook", "float64", "func", "compile", "export"]


def convolution(kind=nn.Conv2d, storage="compressed", bias=True):
    torch.manual_seed(0)
    model = nn.Sequential(kind(3, 8, 3, padding=1, stride=2, bias=bias))
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3), storage=storage)
    return model.eval()


def images(kind=nn.Conv2d):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, *[9] * (2 if kind is nn.Conv2d else 1), generator=generator)


def computed(model, x, way):
    if way == "hook":
        seen = []
        handle = model[0].linear.register_forward_hook(lambda *given: seen.append(given))
        y = model(x)
        handle.remove()
        assert seen  # the layer was called, with what was unfolded for it
        return y
    if way == "float64":
        return model.double()(x.double()).float()
    if way == "func":
        return torch.func.vmap(lambda each: model(each[None])[0])(x)
    if way == "compile":
        return torch.compile(model, fullgraph=True, backend="eager")(x)
    return torch.export.export(model, (x,)).module()(x) if way == "export" else model(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_a_fused_relu_is_behind_the_bias_on_every_way(kind, storage, way):
    model, x = convolution(kind, storage), images(kind)
    expected = model(x).relu()
    model[0].activation = "relu"
    y = computed(model, x, way)
    assert (y == 0).any()
    torch.testing.assert_close(y, expected)


def test_gradients_go_through_a_fused_relu_on_both_ways():
    found = []
    for way in ("unfused", "kernels", "hook"):
        model, x = convolution(), images().requires_grad_()
        model[0].activation = "relu" if way != "unfused" else None
        y = computed(model, x, way)
        (y if model[0].activation else y.relu()).square().sum().backward()
        found.append([x.grad, *(each.grad for each in model.parameters())])
    for grads in found[1:]:
        torch.testing.assert_close(grads, found[0])


def test_a_relu_of_the_layer_itself_comes_before_the_bias_on_both_ways():
    model, x = convolution(), images()
    model[0].linear.activation = "relu"
    torch.testing.assert_close(computed(model, x, "kernels"), computed(model, x, "hook"))
    bias = model[0].bias.detach().clone()
    model[0].bias.data.zero_()
    torch.testing.assert_close(computed(model, x, "kernels") + bias.view(-1, 1, 1), _with_bias(model, bias)(x))


def _with_bias(model, bias):
    model[0].bias.data.copy_(bias)
    return model


@pytest.mark.parametrize("had_one", [True, False])
def test_a_bias_that_is_set_belongs_to_the_whole(had_one):
    model, x = convolution(bias=had_one), images()
    before = model(x)
    model[0].bias = nn.Parameter(torch.arange(8.0))
    assert "bias=False" not in model[0].extra_repr()
    assert "0.bias" in model.state_dict()
    shifted = model(x)
    whole = pollard.densify_(model)
    assert type(whole[0]) is nn.Conv2d
    torch.testing.assert_close(whole(x), shifted)
    again = convolution(bias=had_one)
    old = again[0].bias if had_one else None
    again[0].bias = nn.Parameter(torch.arange(8.0))
    again[0].bias = old
    torch.testing.assert_close(again(x), before)


def test_a_fused_relu_is_told_and_not_lost():
    model = convolution()
    model[0].activation = "relu"
    assert "activation=relu" in str(model[0])
    for densified in (
        lambda: pollard.densify_(model),
        lambda: pollard.densify_(model, layers="0.linear"),
        model[0].whole,
    ):
        with pytest.raises(InvalidInput, match="a fused activation"):
            densified()
    assert model[0].activation == "relu"
    model[0].activation = None
    assert type(pollard.densify_(model)[0]) is nn.Conv2d


def test_a_flag_of_the_users_own_by_that_name_is_no_fused_relu():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.fc = True, nn.Linear(4, 4)

    model = nn.Sequential(Block())
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    assert type(pollard.densify_(model)[0].fc) is nn.Linear
