"""Curvature against explicit Hessians and Fisher matrices of small networks, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from networks import BATCH, lenet
from pollard.formats.matrix import SparseMatrix
from pollard.pruning import CRITERIA, MEASUREMENTS, Network, prune
from pollard.pruning.criteria import second_order
from pollard.pruning.criteria.second_order import inverse_diagonal, refit
from pollard.pruning.scoring import Scoring

DOUBLE = BATCH[0].double(), BATCH[1]
NAMES = ["0", "2", "4"]
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def measured(name, model, batch=DOUBLE, scoring=None):
    names = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    network = Network(model, names, batch, scoring, generator=torch.Generator().manual_seed(0))
    with network.undisturbed():
        return MEASUREMENTS[name](network)


def per_sample(model, loss=functional.cross_entropy):
    """The gradient of each sample's loss, one sample after the other."""
    weights = [model.get_submodule(name).weight for name in NAMES]
    rows = [torch.autograd.grad(loss(model(x[None]), y[None]), weights) for x, y in zip(*DOUBLE, strict=True)]
    return {name: torch.stack([row[index] for row in rows]) for index, name in enumerate(NAMES)}


class TokensInARow(nn.Module):
    """Flattens all tokens of all samples before its layer, so that the layer sees no axis of samples."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(x.reshape(-1, 4))).view(*x.shape[:2], 6).mean(1))


class SequenceFirst(TokensInARow):
    """Its first layer is given positions before samples."""

    def forward(self, x):
        return self.head(torch.tanh(self.mix(x.transpose(0, 1))).mean(0))


@pytest.mark.parametrize("kind", [TokensInARow, SequenceFirst])
@pytest.mark.parametrize("samples", [5, 7])  # 5: as many as positions, so that shapes alone tell nothing
def test_samples_are_told_apart_whatever_a_layer_is_given(kind, samples):
    torch.manual_seed(0)
    model = kind().double()
    x, y = torch.randn(samples, 5, 4, dtype=torch.float64), torch.arange(samples) % 3
    found = {name: measured(name, model, (x, y)) for name in ("sample_gradients", "fisher_diagonal")}
    curved = measured("gauss_newton_diagonal", model, (x, y))
    weights = {"mix": model.mix.weight, "head": model.head.weight}
    rows = [
        torch.autograd.grad(functional.cross_entropy(model(a[None]), b[None]), weights.values())
        for a, b in zip(x, y, strict=True)
    ]
    for index, name in enumerate(weights):
        own = torch.stack([row[index] for row in rows])
        torch.testing.assert_close(found["sample_gradients"][name], own, **CLOSE)
        torch.testing.assert_close(found["fisher_diagonal"][name], own.square().mean(0), **CLOSE)
        alone = [measured("gauss_newton_diagonal", model, (a[None], b[None]))[name] for a, b in zip(x, y, strict=True)]
        torch.testing.assert_close(curved[name], torch.stack(alone).mean(0), **CLOSE)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_sample_gradients_are_those_of_samples_seen_alone(chunk_size):
    model = lenet().double()
    found, expected = measured("sample_gradients", model, scoring=Scoring(chunk_size=chunk_size)), per_sample(model)
    fisher = measured("fisher_diagonal", model, scoring=Scoring(chunk_size=chunk_size))
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)
        torch.testing.assert_close(fisher[name], expected[name].square().mean(0), **CLOSE)


class OverTime(nn.Module):
    """Its layer is called twice, on a sequence."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(x))))).mean(1)


def test_positions_and_repeated_calls_add_up_within_a_sample():
    torch.manual_seed(0)
    model = OverTime().double()
    x, y = torch.randn(5, 6, 4, dtype=torch.float64), torch.arange(5) % 3
    found = measured("sample_gradients", model, (x, y))
    fisher = measured("fisher_diagonal", model, (x, y))
    for sample in range(5):
        loss = functional.cross_entropy(model(x[sample : sample + 1]), y[sample : sample + 1])
        expected = torch.autograd.grad(loss, [model.mix.weight, model.head.weight])
        torch.testing.assert_close(found["mix"][sample], expected[0], **CLOSE)
        torch.testing.assert_close(found["head"][sample], expected[1], **CLOSE)
    torch.testing.assert_close(fisher["mix"], found["mix"].square().mean(0), **CLOSE)


def loss_of(model, name, batch=DOUBLE, loss=functional.cross_entropy):
    """The loss as a function of one layer's weight alone."""
    return lambda weight: loss(functional_call(model, {f"{name}.weight": weight}, (batch[0],)), batch[1])


def hessian_diagonal(model, name, **options):
    weight = model.get_submodule(name).weight.detach()
    full = torch.autograd.functional.hessian(loss_of(model, name, **options), weight)
    return full.reshape(weight.numel(), -1).diagonal().view(weight.shape)


def test_the_gauss_newton_diagonal_is_the_hessians_where_outputs_are_linear_in_the_weight():
    model = lenet().double()
    found = measured("gauss_newton_diagonal", model)
    torch.testing.assert_close(found["4"], hessian_diagonal(model, "4"), **CLOSE)
    # Piecewise linear units: with fixed signs, the outputs are linear in each single layer's weight.
    torch.testing.assert_close(found["0"], hessian_diagonal(model, "0"), **CLOSE)


def test_negative_curvature_of_the_loss_is_left_out_of_gauss_newton():
    model = lenet().double()
    found = measured("gauss_newton_diagonal", model, scoring=Scoring(lambda o, _: -(o**2).mean()))
    assert all(not part.any() for part in found.values())
    linear = measured("gauss_newton_diagonal", model, scoring=Scoring(lambda o, _: (o**2).mean()))
    assert all(part.sum() > 0 for part in linear.values())


def test_a_loss_without_curvature_has_none():
    found = measured("gauss_newton_diagonal", lenet().double(), scoring=Scoring(lambda o, _: o.mean()))
    assert [name for name, part in found.items() if not part.any()] == NAMES


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    # One-hot inputs and one output: no two weights share a sample.
    model = nn.Linear(6, 1, bias=False).double()
    batch = torch.eye(6, dtype=torch.float64) * torch.arange(1.0, 7)[:, None], torch.zeros(6)
    found = measured("hessian_diagonal", model, batch, Scoring(lambda o, _: (o**2).mean() / 2))[""]
    torch.testing.assert_close(found[0], torch.arange(1.0, 7, dtype=torch.float64) ** 2 / 6, **CLOSE)


def test_hutchinson_is_the_mean_over_random_signs_of_z_times_the_whole_hessian_times_z():
    model = lenet().double()
    weights = [model.get_submodule(name).weight.detach() for name in NAMES]
    sizes = [weight.numel() for weight in weights]

    def loss(flat):
        parts = [part.view(weight.shape) for part, weight in zip(flat.split(sizes), weights, strict=True)]
        state = {f"{name}.weight": part for name, part in zip(NAMES, parts, strict=True)}
        return functional.cross_entropy(functional_call(model, state, (DOUBLE[0],)), DOUBLE[1])

    full = torch.autograd.functional.hessian(loss, torch.cat([weight.flatten() for weight in weights]))
    draw = torch.Generator().manual_seed(0)
    mean = torch.zeros(sum(sizes), dtype=torch.float64)
    for _ in range(32):
        signs = [2.0 * torch.randint(0, 2, weight.shape, generator=draw) - 1 for weight in weights]
        z = torch.cat([sign.flatten() for sign in signs]).double()
        mean += z * (full @ z) / 32
    found = measured("hessian_diagonal", model)
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in NAMES]), mean, rtol=1e-8, atol=1e-10)


def dense_fisher(gradients, damping):
    return gradients.T @ gradients / len(gradients) + damping * torch.eye(gradients.shape[1], dtype=gradients.dtype)


def recursion(gradients, damping):
    """The inverse, sample after sample, as WoodFisher's paper has it."""
    inverse = torch.eye(gradients.shape[1], dtype=gradients.dtype) / damping
    for g in gradients:
        moved = inverse @ g
        inverse -= torch.outer(moved, moved) / (len(gradients) + g @ moved)
    return inverse


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 9), st.sampled_from([1e-5, 1e-2, 1.0]))
def test_the_inverse_fisher_is_the_dense_inverse_and_the_published_recursion(seed, weights, samples, damping):
    gradients = torch.randn(samples, weights, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = inverse_diagonal(gradients, damping)
    fisher = dense_fisher(gradients, damping)
    torch.testing.assert_close(found, torch.linalg.inv(fisher).diagonal(), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(recursion(gradients, damping).diagonal(), found, rtol=1e-5, atol=1e-7)


@given(st.integers(0, 1000), st.integers(2, 12), st.integers(1, 9), st.sampled_from([1e-3, 1.0]))
def test_what_is_kept_minimises_the_quadratic_loss(seed, weights, samples, damping):
    draw = torch.Generator().manual_seed(seed)
    gradients = torch.randn(samples, weights, generator=draw, dtype=torch.float64)
    weight = torch.randn(weights, generator=draw, dtype=torch.float64)
    kept = torch.rand(weights, generator=draw) < 0.5
    new = refit(weight, gradients, kept, damping)
    fisher = dense_fisher(gradients, damping)
    assert not new[~kept].any()
    # At the minimum the gradient of 1/2 d^T F d vanishes in every kept weight.
    torch.testing.assert_close(
        (fisher @ (new - weight))[kept], torch.zeros(int(kept.sum())).double(), rtol=0, atol=1e-8
    )


def test_removing_one_weight_is_the_obs_update():
    draw = torch.Generator().manual_seed(0)
    gradients, weight = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in [(5, 8), (8,)])
    inverse = torch.linalg.inv(dense_fisher(gradients, 1e-2))
    kept = torch.ones(8, dtype=torch.bool)
    kept[3] = False
    expected = weight - weight[3] / inverse[3, 3] * inverse[:, 3]
    torch.testing.assert_close(refit(weight, gradients, kept, 1e-2), expected, rtol=1e-9, atol=1e-9)
    loss = (expected - weight) @ dense_fisher(gradients, 1e-2) @ (expected - weight) / 2
    score = weight**2 / (2 * inverse_diagonal(gradients, 1e-2))
    assert float(loss) == pytest.approx(float(score[3]))


def test_blocks_are_of_consecutive_weights_and_a_block_of_all_is_m_fac(monkeypatch):
    model = lenet().double()
    gradients = measured("sample_gradients", model)["2"]
    weight = model[2].weight.detach()
    whole = CRITERIA["m-fac"](weight=weight, sample_gradients=gradients)
    assert torch.equal(CRITERIA["woodfisher"](weight=weight, sample_gradients=gradients), whole)
    monkeypatch.setattr(second_order, "BLOCK", 100)
    blocked = CRITERIA["woodfisher"](weight=weight, sample_gradients=gradients).flatten()
    flat = gradients.flatten(1)
    for start in range(0, weight.numel(), 100):
        part = slice(start, start + 100)
        fisher = dense_fisher(flat[:, part], 1e-5)
        expected = weight.flatten()[part] ** 2 / (2 * torch.linalg.inv(fisher).diagonal())
        torch.testing.assert_close(blocked[part], expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("criterion", ["woodfisher", "m-fac"])
@pytest.mark.parametrize("pattern", ["unstructured", "v2"])
def test_kept_weights_are_adapted_and_lose_less_than_unadapted_ones(criterion, pattern):
    model = lenet().double()
    plan = prune(model, criterion, 0.5, DOUBLE, pattern=pattern)
    gradients = measured("sample_gradients", model)
    for name in NAMES:
        weight, mask = model.get_submodule(name).weight.detach(), plan.mask(name)
        fisher = dense_fisher(gradients[name].flatten(1), 1e-5)
        adapted = SparseMatrix(plan.updated[name], plan[name]).to_dense()
        assert not adapted[~mask].any()

        def lost(changed, weight=weight, fisher=fisher):
            step = (changed - weight).flatten()
            return float(step @ fisher @ step)

        assert lost(adapted) < lost(torch.where(mask, weight, 0.0))


@pytest.mark.parametrize("criterion", ["obd", "fisher", "hutchinson"])
def test_diagonal_scores_are_the_second_order_rise_of_the_loss(criterion):
    model = lenet().double()
    rule = CRITERIA[criterion]
    (need,) = (need for need in rule.needs if need != "weight")
    diagonal = measured(need, model)["2"]
    weight = model[2].weight.detach()
    torch.testing.assert_close(rule(weight=weight, **{need: diagonal}), 0.5 * diagonal.abs() * weight * weight, **CLOSE)
