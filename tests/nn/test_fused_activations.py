"""Activations of whole models, fused into the layers before them, or left where they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pollard
from folded import folds, seeded, settled, stays, wired
from pollard.errors import InvalidInput
from pollard.nn import SparseLinear
from pollard.nn.activations import activation_of


def test_a_relu_of_two_places_stays_and_the_norm_is_folded():
    model = wired(lambda m, x: m.relu(m.fc2(m.relu(m.norm(m.fc1(x))))))
    folding = folds(model, torch.randn(4, 6))
    assert folding.norms == {"norm": "fc1"}
    assert not folding.activations
    assert type(model.relu) is nn.ReLU


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.relu(y := m.norm(m.fc1(x))) + y,
        lambda m, x: m.relu(m.norm(m.fc1(x)) + x),
        lambda m, x: F.relu(m.norm(m.fc1(x))),
    ],
)
def test_a_relu_that_is_not_alone_behind_a_layer_stays(forward):
    folding = folds(wired(forward), torch.randn(4, 6))
    assert folding.norms == {"norm": "fc1"}
    assert not folding.activations


class Wrapped(nn.Module):
    """An activation as libraries write it: a module of theirs around torch's function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (Wrapped(F.gelu), "gelu"),
        (Wrapped(lambda x: F.gelu(x, approximate="tanh")), "gelu_tanh"),
        (Wrapped(F.silu), "silu"),
        (Wrapped(lambda x: x.relu()), "relu"),
        (Wrapped(lambda x: F.relu(x, inplace=False)), "relu"),
        (nn.Tanh(), None),
        (Wrapped(lambda x: 2 * F.gelu(x)), None),
        (Wrapped(lambda x: F.gelu(2 * x)), None),
        (Wrapped(lambda x: F.gelu(x) if x.sum() > -1e9 else x), None),
        (Wrapped(torch.tanh), None),
        (Wrapped(lambda x: x), None),
    ],
)
def test_activations_are_fused_whoever_wrote_them(module, name):
    model = settled(seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), module, nn.Linear(8, 2))))
    folding = folds(model, torch.randn(4, 6))
    assert folding.activations == ({} if name is None else {"2": "0"})
    assert model[0].activation == name
    assert type(model[2]) is (type(module) if name is None else nn.Identity)


def test_an_activation_with_something_of_its_own_is_none_that_kernels_know():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return F.gelu(x)

    class Two(nn.Module):
        def forward(self, x, y=None):
            return F.gelu(x)

    assert activation_of(Scaled()) is None
    assert activation_of(Two()) is None


def test_a_norm_behind_a_fused_relu_stays():
    model = wired(lambda m, x: m.fc2(m.norm(m.fc1(x))))
    model.fc1.activation = "relu"
    stays(model, torch.randn(4, 6), "an activation is fused into 'fc1'")


def test_activations_alone_are_fused_and_densify_tells():
    model = settled(seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))))
    folding = folds(model, torch.randn(3, 6))
    assert folding.activations == {"1": "0"}
    assert isinstance(model[0], SparseLinear)
    assert str(folding) == "folded 0 of 0 batch norms, fused 1 activation"
    with pytest.raises(InvalidInput, match="a fused activation in '0'"):
        pollard.densify_(model)
