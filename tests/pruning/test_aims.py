from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from networks import BATCH, lenet, noisy
from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.pruning import Plan, measure_aims, prune, trainability

DOUBLE = BATCH[0].double(), BATCH[1]
NAMES = ["0", "2", "4"]


def pruned_copy(model, plan):
    other = copy.deepcopy(model)
    for name in plan:
        other.get_submodule(name).weight.data *= plan.mask(name)
    return other


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_every_figure_is_its_definition(chunk_size):
    model = lenet().double()
    plan = prune(model, "snip", 0.3, DOUBLE)
    other = pruned_copy(model, plan)
    aims = measure_aims(model, plan, DOUBLE, chunk_size=chunk_size, samples=11)
    for loss, accuracy, net in ((aims.loss_before, aims.accuracy_before, model), (aims.loss, aims.accuracy, other)):
        assert loss == pytest.approx(float(functional.cross_entropy(net(DOUBLE[0]), DOUBLE[1]).detach()))
        assert accuracy == float((net(DOUBLE[0]).argmax(1) == DOUBLE[1]).double().mean())
    weights = [other.get_submodule(name).weight for name in NAMES]
    slopes = torch.autograd.grad(functional.cross_entropy(other(DOUBLE[0]), DOUBLE[1]), weights)
    kept = torch.cat([slope[plan.mask(name)] for slope, name in zip(slopes, NAMES, strict=True)])
    assert aims.gradient_norm == pytest.approx(float(kept.norm()))
    jacobians = [torch.autograd.functional.jacobian(other, x) for x in DOUBLE[0][:11]]
    assert aims.singular_value == pytest.approx(
        float(torch.stack([torch.linalg.svdvals(j).mean() for j in jacobians]).mean())
    )
    trace = 0.0
    for x in DOUBLE[0][:11]:
        for unit in range(4):
            for slope, name in zip(torch.autograd.grad(other(x)[unit], weights), NAMES, strict=True):
                trace += float(slope[plan.mask(name)].square().sum()) / 11
    assert aims.ntk_trace == pytest.approx(trace)


def test_predictions_are_the_taylor_expansion_of_the_loss():
    """Against derivatives of the loss along the straight line from all weights to those that are kept."""
    model = lenet().double()
    plan = prune(model, "magnitude", 0.8, DOUBLE)
    aims = measure_aims(model, plan, DOUBLE)

    def along(scale):
        state = {
            f"{name}.weight": model.get_submodule(name).weight.detach() * (1 - scale * (~plan.mask(name)).double())
            for name in NAMES
        }
        return functional.cross_entropy(functional_call(model, state, (DOUBLE[0],)), DOUBLE[1])

    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(along(scale), scale, create_graph=True)[0]
    second = torch.autograd.grad(first, scale)[0]
    assert aims.first_order == pytest.approx(float(first.detach()))
    assert aims.second_order == pytest.approx(float(first.detach() + second / 2))


def test_adapted_weights_are_those_that_are_measured():
    model = lenet().double()
    plan = prune(model, "exact-obs", 0.4, DOUBLE)
    other = copy.deepcopy(model)
    for name in plan:
        other.get_submodule(name).weight.data = SparseMatrix(plan.updated[name], plan[name]).to_dense()
    expected = float(functional.cross_entropy(other(DOUBLE[0]), DOUBLE[1]).detach())
    assert measure_aims(model, plan, DOUBLE).loss == pytest.approx(expected, rel=1e-12)
    assert measure_aims(model, Plan(plan.topologies), DOUBLE).loss != pytest.approx(expected, rel=1e-6)


def test_keeping_everything_changes_nothing():
    model = lenet()
    aims = measure_aims(model, prune(model, "magnitude", 1.0), BATCH)
    assert (aims.first_order, aims.second_order) == (0, 0)
    assert (aims.loss, aims.accuracy) == (aims.loss_before, aims.accuracy_before)


def test_the_model_is_only_read():
    model = noisy().train()
    before = copy.deepcopy(model)
    measure_aims(model, prune(model, "magnitude", 0.3), BATCH, chunk_size=9)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_and_tokens_are_measured_as_far_as_they_can_be():
    aims = measure_aims(lenet().bfloat16(), prune(lenet(), "magnitude", 0.5), (BATCH[0].bfloat16(), BATCH[1]))
    assert aims.singular_value > 0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 3))
    batch = torch.randint(10, (8, 3)), torch.arange(8) % 3
    aims = measure_aims(model, prune(model, "snip", 0.5, batch), batch)
    assert aims.singular_value is None
    assert aims.ntk_trace > 0


def test_no_accuracy_without_labels():
    model = lenet()
    targets = torch.randn(40, 4)
    aims = measure_aims(model, prune(model, "magnitude", 0.3), (BATCH[0], targets), loss_fn=functional.mse_loss)
    assert aims.accuracy is None is aims.accuracy_before


def test_a_plan_of_another_model_is_refused():
    plan = prune(lenet(), "magnitude", 0.3)
    with pytest.raises(InvalidInput, match="layer '0'"):
        measure_aims(nn.Sequential(nn.Linear(3, 3)), plan, BATCH)
    with pytest.raises(InvalidInput, match="no dense weight"):
        measure_aims(nn.Sequential(nn.ReLU()), plan, BATCH)
    with pytest.raises(InvalidInput, match="samples=0"):
        measure_aims(lenet(), plan, BATCH, samples=0)


@pytest.mark.parametrize(
    "rates, stage",
    [([0.1, 0.1, 0.01, 0.01], 2), ([0.1] * 4, 4), ([0.02, 0.1, 0.08, 0.04], 3), ([0.1, 0.06, 0.04, 0.0], 2)],
)
def test_trainability_is_the_mean_over_the_first_stage(rates, stage):
    accuracies = [0.1, 0.5, 0.6, 0.8]
    assert trainability(accuracies, rates) == pytest.approx(sum(accuracies[:stage]) / stage)


def test_trainability_of_nothing_is_refused():
    for accuracies, rates in (([], []), ([0.5], [0.1, 0.1])):
        with pytest.raises(InvalidInput, match="one of each an epoch"):
            trainability(accuracies, rates)
