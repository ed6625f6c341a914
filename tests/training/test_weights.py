"""A weight that moves: in place where it can, and leaving nothing behind."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput
from pollard.nn import SparseLinear


def layer_in_training(method="set", **options):
    layer = SparseLinear.random(40, 30, 0.2, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(layer)
    optimizer = torch.optim.Adam(model.parameters())
    sparse = pollard.sparse_training(model, optimizer, method, density=0.2, steps=100, every=1, **options)
    return layer, sparse


def step(layer, sparse):
    sparse.optimizer.zero_grad()
    layer(torch.randn(8, 40)).square().mean().backward()
    sparse.step()


def test_an_old_topology_is_freed_at_once():
    layer, sparse = layer_in_training()
    step(layer, sparse)
    gc.collect()
    gc.disable()
    try:
        before = weakref.ref(layer.topology)
        step(layer, sparse)
        assert before() is None
    finally:
        gc.enable()


def test_topologies_that_were_multiplied_by_can_be_collected():
    layer = SparseLinear.random(40, 30, 0.2)
    layer(torch.randn(8, 40)).sum().backward()
    used = weakref.ref(layer.topology)
    del layer
    gc.collect()
    assert used() is None


def test_a_copy_of_a_layer_outlives_the_move_of_the_other():
    layer, sparse = layer_in_training()
    twin = copy.deepcopy(layer)
    x = torch.randn(8, 40)
    expected = twin(x)
    step(layer, sparse)
    assert not layer.topology.same_as(twin.topology)
    torch.testing.assert_close(twin(x), expected)


def test_held_sizes_are_written_in_place():
    layer, sparse = layer_in_training()
    step(layer, sparse)
    state, keys = sparse.optimizer.state[layer.values], ("exp_avg", "exp_avg_sq")
    place, held = layer.values.data_ptr(), [state[key].data_ptr() for key in keys]
    step(layer, sparse)
    assert layer.values.data_ptr() == place
    # All state moves by way of one new tensor: it took the place of the last that moved.
    now = [state[key].data_ptr() for key in keys]
    assert now[1:] == held[:-1]
    assert len({place, *now}) == 3


def test_sizes_that_change_leave_the_parameter_the_same_object():
    layer, sparse = layer_in_training("gmp", start_density=0.6)
    # An old loss keeps torch's node for the parameter alive, with its size.
    old = layer(torch.randn(8, 40)).square().mean()
    old.backward()
    sparse.step()
    parameter, kept = layer.values, layer.values.numel()
    for _ in range(80):
        step(layer, sparse)
    assert layer.values is parameter
    assert [layer.values.numel(), kept > 240] == [240, True]
    assert old.isfinite()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["rigl", "set", "static"])
@pytest.mark.parametrize(
    ("storage", "change"),
    [
        ("compressed", nn.utils.parametrizations.weight_norm),
        ("compressed", nn.utils.weight_norm),
        ("masked", nn.utils.weight_norm),
    ],
)
def test_a_weight_that_has_come_to_be_made_anew_at_each_call_is_not_stepped(method, storage, change):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {} if method == "static" else {"every": 2}
    sparse = pollard.sparse_training(model, optimizer, method, density=0.5, steps=9, storage=storage, **options)
    name = "values" if storage == "compressed" else "weight"
    change(model[0], name, dim=None)
    model(torch.ones(3, 8)).sum().backward()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(InvalidInput, match=r"layer '0' .*(weight_norm|WeightNorm)"):
        sparse.step()
    assert sparse.steps == 0
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), 0.1).step()  # is told to every Sparsifier there is
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
