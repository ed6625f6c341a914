from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    first: nn.Module
    second: nn.Module


class Held(nn.Module):
    """Two layers, used through whatever `hold` makes of them."""

    def __init__(self, hold):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.held = hold(self.a, self.b)

    def forward(self, x):
        return self.layers()[1](self.layers()[0](x).relu())

    def layers(self):
        held = self.held
        if isinstance(held, dict):
            held = held["layers"]
        return [each.inner if hasattr(each, "inner") else each for each in held]


class Outside(nn.Module):
    """A module that its holder does not register."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer

    def forward(self, x):
        return self.inner(x)


REPLACED = {
    "a list": lambda a, b: [a, b],
    "a tuple": lambda a, b: (a, b),
    "a named tuple": Pair,
    "a dict of lists": lambda a, b: {"layers": [a, b]},
    "a dict of tuples": lambda a, b: {"layers": (a, b)},
    "unregistered modules in a list": lambda a, b: [Outside(a), Outside(b)],
}
PLAN = {name: Topology.random((6, 6), 0.3, generator=torch.Generator().manual_seed(1)) for name in "ab"}


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("hold", REPLACED.values(), ids=REPLACED)
def test_a_layer_is_replaced_wherever_it_is_held(hold, storage):
    model, expected = Held(hold), Held(lambda a, b: [a, b])
    for name, topology in PLAN.items():
        getattr(expected, name).weight.data.mul_(topology.mask())
    pollard.sparsify_(model, PLAN, storage=storage)
    torch.testing.assert_close(model(X), expected(X))
    model(X).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    pollard.densify_(model)
    assert [type(layer) for layer in model.layers()] == [nn.Linear, nn.Linear]
    torch.testing.assert_close(model(X), expected(X))


FIXED = {
    "a bound method": lambda a, b: a.forward,
    "a partial function": lambda a, b: partial(a, X),
    "a closure": lambda a, b: lambda x: b(a(x)),
    "a default argument": lambda a, b: lambda x, layer=a: layer(x),
    "a set": lambda a, b: {a, b},
    "a tuple in a set": lambda a, b: {(1, a)},
}


@pytest.mark.parametrize("hold", FIXED.values(), ids=FIXED)
def test_a_layer_that_cannot_be_replaced_is_refused_and_nothing_has_changed(hold):
    model = Held(hold)
    with pytest.raises(InvalidInput, match=r"layer .[ab]. held in held"):
        pollard.sparsify_(model, PLAN)
    assert type(model.a) is type(model.b) is nn.Linear


def test_a_list_that_a_closure_sees_is_changed():
    def hold(a, b):
        layers = [a, b]
        return lambda x: layers[1](layers[0](x).relu())

    model = Held(hold)
    pollard.sparsify_(model, PLAN)
    assert model.held(X).equal(model.b(model.a(X).relu()))


def test_an_attribute_outside_the_submodules_is_replaced():
    model = Held(lambda a, b: [])
    vars(model)["alias"] = model.a
    pollard.sparsify_(model, PLAN)
    assert vars(model)["alias"] is model.a


def test_what_holds_itself_does_not_go_on_for_ever():
    model = Held(lambda a, b: [a, b])
    model.held.append(model.held)
    model.held.append(model)
    pollard.sparsify_(model, PLAN)
    assert model.held[0] is model.a
