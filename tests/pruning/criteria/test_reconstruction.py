from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pollard.formats.pattern import Pattern
from pollard.pruning import CRITERIA, prune
from pollard.pruning.criteria.reconstruction import hessian

ROWS, COLUMNS = 6, 10


def problem(seed=0, rows=ROWS, columns=COLUMNS, samples=40):
    """A weight, and correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=draw, dtype=torch.float64)
    inputs = torch.randn(samples, columns, generator=draw, dtype=torch.float64) @ mix
    return weight, inputs


def solved(name, weight, inputs, count, pattern="unstructured"):
    gram = inputs.T @ inputs
    groups = len(weight) // Pattern.parse(pattern).rows
    allowed = torch.ones(groups, weight.shape[1], dtype=torch.bool)
    positions, new = CRITERIA[name].solve(weight, count, Pattern.parse(pattern), allowed, input_gram=gram)
    mask = torch.zeros(groups * weight.shape[1], dtype=torch.bool)
    mask[positions] = True
    mask = Pattern.parse(pattern).spread(mask.view(groups, -1))
    return mask, torch.where(mask, new, 0.0)


def output_loss(weight, new, gram):
    """1/2 d^T H d, over all rows."""
    step = new - weight
    return float(((step @ hessian(gram)) * step).sum() / 2)


@given(st.integers(0, 10_000))
def test_what_exact_obs_keeps_of_a_row_is_what_its_steps_have_left(seed):
    weight, inputs = problem(seed)
    curvature = hessian(inputs.T @ inputs)
    mask, _ = solved("exact-obs", weight, inputs, weight.numel() // 2)
    for row, kept in zip(weight, mask, strict=True):
        assert set((~kept).nonzero().flatten().tolist()) == set(greedy(row, curvature, int((~kept).sum()))[0])


@pytest.mark.parametrize("pattern", ["unstructured", "v2"])
def test_what_exact_obs_keeps_is_the_least_squares_solution(pattern):
    weight, inputs = problem()
    gram = inputs.T @ inputs
    grains = weight.numel() // Pattern.parse(pattern).rows
    mask, new = solved("exact-obs", weight, inputs, grains // 3, pattern)
    # Least squares as augmented rows: sqrt(2) X on top of the damping's root.
    damp = (hessian(gram) - 2 * gram).diagonal().sqrt()
    system = torch.cat([math.sqrt(2) * inputs, damp.diag()])
    for row in range(ROWS):
        kept = mask[row]
        wanted = system @ weight[row]
        if kept.any():
            best = torch.linalg.lstsq(system[:, kept], wanted[:, None]).solution[:, 0]
            torch.testing.assert_close(new[row, kept], best, rtol=1e-8, atol=1e-10)


def greedy(weight, curvature, steps):
    """OBS by its definition: remove, adapt, invert what is left, again."""
    left, weight = list(range(len(weight))), weight.clone()
    order, losses = [], []
    for _ in range(steps):
        inverse = torch.linalg.inv(curvature[left][:, left])
        saliency = weight[left].square() / (2 * inverse.diagonal())
        place = int(saliency.argmin())
        losses.append(float(saliency[place]))
        weight[left] -= inverse[:, place] * weight[left[place]] / inverse[place, place]
        order.append(left.pop(place))
    return order, losses, weight


@pytest.mark.parametrize("seed", range(3))
def test_exact_obs_removes_one_weight_after_the_other_as_obs_does(seed):
    weight, inputs = problem(seed, rows=1)
    curvature = hessian(inputs.T @ inputs)
    order, losses, left = greedy(weight[0], curvature, COLUMNS - 3)
    mask, new = solved("exact-obs", weight, inputs, 3)
    assert sorted(order) == (~mask[0]).nonzero().flatten().tolist()
    torch.testing.assert_close(new[0, mask[0]], left[mask[0]], rtol=1e-7, atol=1e-10)
    # The losses of the steps add up to the loss of all of them.
    assert sum(losses) == pytest.approx(output_loss(weight, new, inputs.T @ inputs), rel=1e-8)


def test_rows_share_the_budget_by_the_losses_of_their_steps():
    weight, inputs = problem(rows=4)
    weight[0] *= 1e-3
    mask, _ = solved("exact-obs", weight, inputs, 2 * COLUMNS)
    assert mask[0].sum() == 0
    assert mask.sum() == 2 * COLUMNS


def test_many_columns_are_removed_in_the_same_order_as_few():
    # Enough columns for the arrays to shrink several times on the way.
    weight, inputs = problem(5, rows=2, columns=60, samples=200)
    curvature = hessian(inputs.T @ inputs)
    mask, new = solved("exact-obs", weight[:1], inputs, 12)
    order, _, left = greedy(weight[0], curvature, 48)
    assert sorted(order) == (~mask[0]).nonzero().flatten().tolist()
    torch.testing.assert_close(new[0, mask[0]], left[mask[0]], rtol=1e-6, atol=1e-9)


def sparsegpt_row(weight, curvature, mask):
    """Column by column: what is dropped is made up for by OBS over the columns to the right."""
    weight = weight.clone()
    for column in range(len(weight)):
        right = list(range(column, len(weight)))
        inverse = torch.linalg.inv(curvature[right][:, right])
        error = 0.0 if mask[column] else weight[column] / inverse[0, 0]
        weight[right] -= error * inverse[0]
    return weight


def test_sparsegpt_is_obs_over_the_columns_to_the_right():
    weight, inputs = problem()
    mask, new = solved("sparsegpt", weight, inputs, 25)
    curvature = hessian(inputs.T @ inputs)
    for row in range(ROWS):
        slow = sparsegpt_row(weight[row], curvature, mask[row])
        torch.testing.assert_close(new[row, mask[row]], slow[mask[row]], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(slow[~mask[row]], torch.zeros_like(slow[~mask[row]]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("criterion", ["sparsegpt", "exact-obs"])
def test_samples_that_are_seen_more_often_change_nothing(criterion):
    # Small inputs, and some that are always zero, whose diagonal of 1 the damping is a hundredth of.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x, y = 0.05 * torch.randn(50, 20, dtype=torch.float64), torch.randint(4, (50,))
    x[:, ::3] = 0.0
    once = prune(model, criterion, 0.4, (x, y))
    often = prune(model, criterion, 0.4, (x.repeat(100, 1), y.repeat(100)))
    for name, topology in once.items():
        assert topology.same_as(often[name])
        torch.testing.assert_close(once.updated[name], often.updated[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 100, 601, 1200])
def test_sparsegpt_spends_the_whole_budget_over_its_blocks(count):
    weight, inputs = problem(rows=4, columns=300, samples=400)
    mask, _ = solved("sparsegpt", weight, inputs, count)
    assert int(mask.sum()) == count


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.7]))
def test_solutions_that_adapt_lose_less_of_the_outputs(seed, density):
    weight, inputs = problem(seed, rows=8, columns=16, samples=64)
    gram, count = inputs.T @ inputs, round(density * 128)
    loss = {
        name: output_loss(weight, solved(name, weight, inputs, count)[1], gram) for name in ("exact-obs", "sparsegpt")
    }
    largest = torch.zeros(128, dtype=torch.bool)
    largest[weight.abs().flatten().topk(count).indices] = True
    loss["magnitude"] = output_loss(weight, torch.where(largest.view_as(weight), weight, 0.0), gram)
    assert loss["exact-obs"] <= loss["sparsegpt"]
    assert loss["exact-obs"] <= loss["magnitude"]


@pytest.mark.parametrize("name", ["exact-obs", "sparsegpt"])
def test_inputs_that_are_never_there_go_first(name):
    weight, inputs = problem()
    inputs[:, [2, 7]] = 0
    mask, new = solved(name, weight * 10, inputs * 100, 4 * COLUMNS)
    assert not mask[:, [2, 7]].any()
    assert bool(torch.isfinite(new).all())


@pytest.mark.parametrize("name", ["exact-obs", "sparsegpt"])
def test_a_pruned_network_keeps_its_outputs_better_than_without_new_weights(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(200, 12) @ torch.randn(12, 12)
    plan = prune(model, name, 0.5, (x, torch.zeros(200).long()), layers="0")
    before = model[0](x).detach()
    weight = model[0].weight.detach()
    adapted = torch.zeros_like(weight)
    adapted[plan.mask("0")] = plan.updated["0"]
    bias = model[0].bias.detach()
    losses = [float(((x @ w.T + bias - before) ** 2).mean()) for w in (adapted, weight * plan.mask("0"))]
    assert losses[0] < 0.7 * losses[1]
