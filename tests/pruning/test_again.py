"""What is sparse already is pruned further, on the storage that it has."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import pollard
from kinds import X, Y, network
from networks import BATCH, generator, lenet, same
from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.nn import SparseLinear

NAMES = ("0", "2", "4")


def sparse(density=0.5, storage="compressed", pattern="unstructured"):
    model = lenet()
    return pollard.sparsify_(model, pollard.prune(model, "magnitude", density, pattern=pattern), storage=storage)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("pattern", ["unstructured", "v4", "b2x2"])
def test_by_magnitude_in_steps_is_as_at_once(storage, pattern):
    model = sparse(storage=storage, pattern=pattern)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    layers = list(model)
    plan = pollard.prune(model, "magnitude", 0.2)
    # The model was only looked at.
    assert list(model) == layers
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert same(plan, pollard.prune(lenet(), "magnitude", 0.2, pattern=pattern))
    assert plan.coverage.density == pytest.approx(0.2, abs=0.01)
    assert pollard.sparsify_(model, plan) is model
    assert list(model) == layers, "layers were replaced that had only to shrink"
    expected = pollard.sparsify_(lenet(), plan)
    torch.testing.assert_close(model(BATCH[0]), expected(BATCH[0]))
    assert all(model.get_submodule(name).topology.same_as(plan[name]) for name in NAMES)
    if storage == "compressed":
        assert model[0].values.numel() == plan["0"].nnz


@pytest.mark.parametrize("criterion", ["snip", "synflow", "wanda", "exact-obs", "taylor"])
def test_criteria_see_the_network_that_is_left(criterion):
    first = pollard.prune(lenet(), "magnitude", 0.5)
    dense = lenet()
    for name in NAMES:
        dense.get_submodule(name).weight.data.mul_(first.mask(name))
    by_hand = pollard.prune(dense, criterion, 0.2, BATCH, within=first, generator=generator())
    model = sparse()
    plan = pollard.prune(model, criterion, 0.2, BATCH, generator=generator())
    assert same(plan, by_hand)
    y = pollard.sparsify_(dense, by_hand)(BATCH[0])
    torch.testing.assert_close(pollard.sparsify_(model, plan)(BATCH[0]), y)


def test_an_optimizer_in_a_sparsifier_follows():
    model = sparse()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    static = pollard.static(model, optimizer, steps=20)

    def step():
        static.zero_grad()
        F.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
        static.step()

    for density in (0.4, 0.3, 0.2):
        for _ in range(3):
            step()
        moments = SparseMatrix(optimizer.state[model[0].values]["exp_avg"].clone(), model[0].topology).to_dense()
        values, parameter = (
            SparseMatrix(model[0].values.detach().clone(), model[0].topology).to_dense(),
            model[0].values,
        )
        plan = pollard.prune(model, "magnitude", density)
        pollard.sparsify_(model, plan)
        assert model[0].values is parameter
        assert torch.equal(SparseMatrix(parameter.detach(), plan["0"]).to_dense(), values * plan.mask("0"))
        optimizer.param_groups[0]["lr"] = 0.0
        step()
        optimizer.param_groups[0]["lr"] = 0.01
        held = SparseMatrix(optimizer.state[parameter]["exp_avg"], plan["0"]).to_dense()
        gradient = SparseMatrix(parameter.grad, plan["0"]).to_dense()
        torch.testing.assert_close(held, 0.9 * moments * plan.mask("0") + 0.1 * gradient)
    assert pollard.Coverage.of(model).density == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("kind", ["LSTM", "Conv2d", "MultiheadAttention"])
def test_weights_of_other_layers_too(kind):
    model = network(kind)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.6))
    plan = pollard.prune(model, "snip", 0.3, (X, Y))
    twin = copy.deepcopy(model)
    pollard.sparsify_(model, plan)
    assert pollard.Coverage.of(model).density == pytest.approx(0.3, abs=0.02)
    dense = pollard.densify_(twin)
    assert model(X).shape == dense(X).shape
    assert all(torch.equal(model.get_submodule(name).topology.mask(), plan.mask(name)) for name in plan)


def test_dense_layers_beside_are_left_or_pruned_alone():
    model = lenet()
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5, layers=["0", "2"]))
    assert list(pollard.prune(model, "magnitude", 0.2)) == ["0", "2"]
    assert list(pollard.prune(model, "magnitude", 0.2, layers="4")) == ["4"]
    assert list(pollard.prune(model, "magnitude", 0.2, layers="2")) == ["2"]
    with pytest.raises(InvalidInput, match=r"sparse, '2', and dense ones, '4'.*two calls"):
        pollard.prune(model, "magnitude", 0.2, layers=["2", "4"])


def test_nothing_comes_back():
    model = sparse(0.2)
    with pytest.raises(InvalidInput, match=r"density 0\.5"):
        pollard.prune(model, "magnitude", 0.5)
    other = pollard.prune(lenet(), "random", 0.1, generator=generator())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidInput, match=r"'0', which is sparse already.*a part of what it keeps"):
        pollard.sparsify_(model, other)
    with pytest.raises(InvalidInput, match="sparse already"):
        pollard.sparsify_(model, pollard.prune(lenet(), "magnitude", 0.1, pattern="v2"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InvalidInput, match="within="):
        pollard.prune(model, "magnitude", 0.1, pattern="v2")
    with pytest.raises(InvalidInput, match="itself a SparseLinear"):
        pollard.prune(SparseLinear.random(8, 4, 0.5), "magnitude", 0.1)
