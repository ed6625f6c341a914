"""Criteria that change the weights they keep: new values travel in the plan, and reach the sparse layer."""

from __future__ import annotations

import pytest
import torch

from networks import lenet, same
from pollard.errors import InvalidInput
from pollard.nn import sparsify_
from pollard.pruning import CRITERIA, Plan, criterion, prune


@pytest.fixture
def halving():
    """Keeps the first grains, and halves their weights."""

    @criterion(needs=("weight",))
    def halving(weight):
        return torch.ones_like(weight)

    @halving.solved_by
    def first(weight, count, pattern, allowed):
        return torch.arange(count), weight / 2

    yield
    del CRITERIA["halving"]


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_new_values_of_a_plan_reach_the_sparse_layer(halving, storage, pattern):
    model = lenet()
    before = {name: model.get_submodule(name).weight.detach().clone() for name in ("0", "2", "4")}
    plan = prune(model, "halving", 0.5, pattern=pattern, allocation="uniform")
    assert torch.equal(model[0].weight, before["0"]), "the model is only read"
    sparsify_(model, plan, storage=storage)
    for name, weight in before.items():
        assert torch.equal(model.get_submodule(name).to_dense().weight, torch.where(plan.mask(name), weight / 2, 0.0))


def test_new_values_survive_a_file(halving, tmp_path):
    plan = prune(lenet(), "halving", 0.5, pattern={"0": "v4"}, allocation="uniform")
    plan.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    assert same(plan, loaded)
    assert list(loaded.updated) == list(plan)
    assert all(torch.equal(loaded.updated[name], values) for name, values in plan.updated.items())


def test_new_values_that_do_not_fit_are_refused():
    plan = prune(lenet(), "magnitude", 0.5)
    with pytest.raises(InvalidInput, match=r"new values of shape \(3,\) for layer '0'"):
        Plan(dict(plan), updated={"0": torch.ones(3)})


def test_a_criterion_that_solves_cannot_be_inverted(halving):
    with pytest.raises(InvalidInput, match="invert=True"):
        prune(lenet(), "halving", 0.5, invert=True)
