from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import BATCH, lenet
from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.pruning import measure_aims, prune, restore_isometry
from pollard.pruning.isometry import distance_from_isometry


def dense(plan, name):
    return SparseMatrix(plan.updated[name], plan[name]).to_dense()


def test_a_dense_square_weight_becomes_orthogonal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12))
    weight = dense(restore_isometry(prune(model, "magnitude", 1.0), model), "0")
    torch.testing.assert_close(weight @ weight.T, torch.eye(12), rtol=0, atol=1e-4)


@pytest.mark.parametrize("pattern", ["unstructured", "v2"])
def test_topologies_stay_and_every_layer_gets_nearer(pattern):
    model = lenet()
    plan = prune(model, "snip", 0.3, BATCH, pattern=pattern)
    repaired = restore_isometry(plan, model)
    for name in plan:
        assert repaired[name].same_as(plan[name])
        before = torch.where(plan.mask(name), model.get_submodule(name).weight.detach(), 0.0)
        assert distance_from_isometry(dense(repaired, name)) < distance_from_isometry(before)
    assert (repaired.criterion, repaired.asked) == ("snip", 0.3)


def test_signals_pass_better_than_before():
    model = lenet()
    plan = prune(model, "magnitude", 0.3, BATCH)
    before, after = (measure_aims(model, each, BATCH) for each in (plan, restore_isometry(plan, model)))
    assert after.singular_value > 1.5 * before.singular_value


def test_a_layer_that_keeps_nothing_keeps_its_no_values():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.data *= 100
    with pytest.warns(match="nothing is kept"):
        plan = prune(model, "magnitude", 0.25, allocation="global")
    assert restore_isometry(plan, model).updated["1"].shape == (0,)


def test_no_iterations_are_refused():
    model = lenet()
    with pytest.raises(InvalidInput, match="iterations=0"):
        restore_isometry(prune(model, "magnitude", 0.3), model, iterations=0)
