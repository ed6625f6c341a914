"""Folding models that cannot be traced whole: what of their parts is folded all the same."""

import copy

import pytest
import torch
from torch import nn

import pollard
from folded import IMAGES, folds, seeded, settled, stays
from pollard.errors import InvalidInput


class Looking(nn.Module):
    """Looks at sizes, so that it cannot be traced, and calls `inner`."""

    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x):
        for module in self.inner if x.shape[0] > 1 else ():
            x = module(x)
        return x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) + x


def test_where_the_whole_cannot_be_traced_its_parts_are():
    model = Looking(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Looking(nn.BatchNorm2d(3)), nn.ReLU()),
        Block(),
        nn.BatchNorm2d(3),
    )
    folding = folds(settled(seeded(lambda: model)), IMAGES)
    assert folding.norms == {"inner.0.1": "inner.0.0", "inner.1.norm": "inner.1.conv"}
    assert all("its call is not seen: TraceError" in folding.left[name] for name in ("inner.0.2.inner.0", "inner.2"))
    assert not pollard.fold_norms_(model).norms


def test_what_the_untraced_may_call_elsewhere_stays():
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = settled(seeded(lambda: Looking(inner, inner[0])))
    stays(model, IMAGES, "held in several places")
    model = settled(seeded(lambda: Looking(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))))
    model.probes = [model.inner[0][1]]
    stays(model, IMAGES, "held in several places")


def test_a_model_of_which_nothing_can_be_traced_is_refused():
    model = settled(seeded(lambda: Looking(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidInput, match=r"no part can be traced symbolically: .*nn\.Sequential"):
        pollard.fold_norms_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_arguments_with_defaults_are_taken_to_be_left_out():
    class Optional(Block):
        def forward(self, x, mask=None, *, scale=1.0):
            y = self.conv(x) if mask is None else self.conv(x) * mask
            return self.norm(y) * scale if scale != 1.0 else self.norm(y)

    assert folds(settled(seeded(Optional)), IMAGES).norms == {"norm": "conv"}


def test_tracing_writes_nothing_and_draws_nothing():
    class Remembering(Block):
        last = None

        def forward(self, x):
            self.last = x
            torch.rand(3)
            return super().forward(x)

    model, state = settled(seeded(Remembering)), torch.get_rng_state()
    pollard.fold_norms_(model)
    assert model.last is None
    assert torch.equal(torch.get_rng_state(), state)
