from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.pruning import CRITERIA, prune
from pollard.pruning.criteria.reconstruction import hessian
from pollard.pruning.criteria.splitting import REFINEMENTS


def problem(seed, rows=6, columns=10, samples=60, shared=1.0):
    """A weight, and inputs that have more in common, the larger `shared`."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    mix = torch.eye(columns, dtype=torch.float64)
    mix += shared * torch.randn(columns, columns, generator=draw, dtype=torch.float64) / columns**0.5
    return weight, torch.randn(samples, columns, generator=draw, dtype=torch.float64) @ mix


def solved(name, weight, gram, count, pattern="unstructured", allowed=None):
    pattern = Pattern.parse(pattern)
    groups, width = pattern.grid(weight.shape)
    allowed = torch.ones(groups, width, dtype=torch.bool) if allowed is None else allowed
    positions, new = CRITERIA[name].solve(weight, count, pattern, allowed, input_gram=gram)
    mask = torch.zeros(groups * width, dtype=torch.bool)
    mask[positions] = True
    mask = pattern.spread(mask.view(groups, width))
    return mask, torch.where(mask, new, 0.0)


def loss(weight, new, gram):
    step = new - weight
    return float(((step @ hessian(gram)) * step).sum() / 2)


def support(values, count):
    flat = values.flatten().tolist()
    return set(sorted(range(len(flat)), key=lambda place: (-abs(flat[place]), place))[:count])


def cut(values, places):
    chosen = torch.tensor(sorted(places))
    return (
        torch.zeros(values.numel(), dtype=torch.float64)
        .index_copy(0, chosen, values.flatten()[chosen])
        .view(values.shape)
    )


def next_penalty(rho, rising, changed):
    """What follows a look at a support of which the fraction `changed` has changed: rho, whether it rises, whether to restart."""
    if changed > 0.1:
        return rho * 1.3, True, False
    if changed > 0.005:
        return rho * 1.2, True, False
    return (rho * 1.1, True, False) if rising else (rho / 5, False, changed > 0)


def as_published(weight, curvature, count):
    """The support by algorithm 1 in plain steps, with a linear system solved anew each time."""
    scale = curvature.diagonal().sqrt()
    system = curvature / torch.outer(scale, scale)
    wanted, one = weight * scale, torch.eye(len(system), dtype=torch.float64)
    first = cut(wanted, support(wanted, count))
    rho, rising, few, dual, last = 0.1, False, first, torch.zeros_like(wanted), support(wanted, count)
    for step in range(1, 301):
        full = torch.linalg.solve(system + rho * one, (wanted @ system - dual + rho * few).T).T
        now = support(full + dual / rho, count)
        few = cut(full + dual / rho, now)
        dual = dual + rho * (full - few)
        if step % 3:
            continue
        changed, last = len(now ^ last) / count, now
        if (rising and not changed) or (step > 30 and changed < 0.0003):
            break
        rho, rising, restart = next_penalty(rho, rising, changed)
        if restart:
            few, dual = first, torch.zeros_like(wanted)
    return support(full, count)


@given(st.integers(0, 10_000), st.sampled_from([5, 20, 40]), st.sampled_from([0.0, 0.3, 2.0]))
def test_alps_is_the_published_algorithm(seed, count, shared):
    weight, inputs = problem(seed, shared=shared)
    gram = inputs.T @ inputs / len(inputs)
    mask, new = solved("alps", weight, gram, count)
    assert set(mask.flatten().nonzero().flatten().tolist()) == as_published(weight, hessian(gram), count)
    # No row has more weights than there are steps of conjugate gradients: they end at the least-squares weights.
    assert weight.shape[1] <= REFINEMENTS
    curvature = hessian(gram)
    for row in range(len(weight)):
        kept = mask[row]
        if kept.any():
            fitted = torch.linalg.solve(curvature[kept][:, kept], curvature[kept] @ weight[row])
            torch.testing.assert_close(new[row, kept], fitted, rtol=1e-6, atol=1e-9)


def test_of_two_inputs_the_one_that_stays_does_the_work_of_the_other():
    # H is [[1, r], [r, 1]] up to a factor and the damping: what is kept becomes w1 + r w2.
    gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    mask, new = solved("alps", weight, gram, 1)
    assert mask.tolist() == [[True, False]]
    assert float(new[0, 0]) == pytest.approx(3 + 0.5 / 1.01)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.3, 0.1]))
def test_outputs_stay_nearer_than_sparsegpt_and_wanda_leave_them(seed, density):
    weight, inputs = problem(seed, rows=24, columns=160, samples=600, shared=1.5)
    layer = nn.Linear(160, 24, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    errors = {}
    for name in ("alps", "sparsegpt", "wanda"):
        plan = prune(nn.Sequential(layer), name, density, (inputs, torch.zeros(600)))
        new = SparseMatrix(plan.updated["0"], plan["0"]).to_dense()
        assert plan.density == density
        errors[name] = float((inputs @ (new - weight).T).square().sum())
    assert errors["alps"] < min(errors["sparsegpt"], errors["wanda"])
    # At a tenth, SparseGPT's choice of what it keeps, made before anything adapts, can cost it more than it makes up for.
    assert errors["sparsegpt"] < errors["wanda"] or density == 0.1


@given(st.integers(0, 10_000), st.sampled_from(["unstructured", "v2", "2:4", "b2x2"]))
def test_the_loss_is_below_that_of_the_support_it_starts_from_whatever_the_pattern(seed, pattern):
    weight, inputs = problem(seed, columns=12)
    gram = inputs.T @ inputs / len(inputs)
    grain = Pattern.parse(pattern)
    count = weight.numel() // grain.size // 2
    mask, new = solved("alps", weight, gram, count, pattern)
    assert int(mask.sum()) == count * grain.size
    before, _ = solved("sparsegpt", weight, gram, count, pattern)
    assert loss(weight, new, gram) <= loss(weight, torch.where(before, weight, 0.0), gram)


def test_only_what_is_allowed_is_chosen_and_outputs_are_those_of_what_is_there():
    weight, inputs = problem(2)
    gram = inputs.T @ inputs / len(inputs)
    allowed = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    weight = weight * allowed
    count = int(allowed.sum()) - 5
    mask, new = solved("alps", weight, gram, count, allowed=allowed)
    assert int(mask.sum()) == count
    assert not (mask & ~allowed).any()
    assert loss(weight, new, gram) < loss(weight, weight * mask, gram)


@pytest.mark.parametrize("share", [0, 1])
def test_nothing_and_everything_are_kept_as_they_are(share):
    weight, inputs = problem(3)
    mask, new = solved("alps", weight, inputs.T @ inputs / len(inputs), share * weight.numel())
    assert bool(mask.all()) == bool(share)
    torch.testing.assert_close(new, share * weight)


def test_inputs_that_are_always_zero_go_first():
    weight, inputs = problem(4)
    inputs[:, 3] = 0
    weight[:, 3] = 100
    mask, new = solved("alps", weight, inputs.T @ inputs / len(inputs), 40)
    assert not mask[:, 3].any()
    assert bool(torch.isfinite(new).all())


@given(st.integers(0, 10_000))
def test_of_inputs_without_anything_in_common_values_stay_and_almost_the_largest_are_kept(seed):
    weight, _ = problem(seed)
    gram = torch.diag(torch.arange(1.0, 11.0, dtype=torch.float64))
    mask, new = solved("alps", weight, gram, 20)
    torch.testing.assert_close(new[mask], weight[mask])
    scores = CRITERIA["alps"](weight, gram)
    best = scores.flatten().sort(descending=True).values[:20]
    # The splitting swaps a few near the threshold, as published; the largest alone would be best here.
    assert best.sum() * 0.9 < scores[mask].sum() <= best.sum() * (1 + 1e-12)
