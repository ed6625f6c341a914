from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from networks import BATCH, lenet
from pollard.pruning import CRITERIA, MEASUREMENTS, Network, prune
from pollard.pruning.scoring import Scoring


def naive_lamp(weight):
    flat = weight.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda position: (-abs(flat[position]), position))
    scores = [0.0] * len(flat)
    for rank, position in enumerate(order):
        scores[position] = flat[position] ** 2 / sum(flat[other] ** 2 for other in order[: rank + 1])
    return torch.tensor(scores, dtype=torch.float64).view(weight.shape)


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 7), st.booleans())
def test_lamp_is_its_definition_and_its_largest_weight_scores_one(seed, rows, columns, ties):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if ties:
        weight = weight.sign() * (1 + weight.abs().round())
    scores = CRITERIA["lamp"](weight)
    torch.testing.assert_close(scores, naive_lamp(weight))
    assert float(scores.max()) == 1


def test_lamp_empties_no_layer_until_each_is_down_to_one_weight():
    plan = prune(lenet(), "lamp", 3 / 736)
    assert [topology.nnz for topology in plan.values()] == [1, 1, 1]


def test_lamp_of_nothing_but_zeros_is_zero():
    assert CRITERIA["lamp"](torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_wanda_keeps_as_many_in_every_row_of_grains_and_the_best_of_each(pattern):
    model = lenet()
    plan = prune(model, "wanda", 0.25, BATCH, allocation="uniform", pattern=pattern)
    norms = BATCH[0].norm(dim=0)
    counts = plan["0"].row_pointers.diff()
    assert counts.max() - counts.min() <= 1
    scores = plan["0"].pattern.grain_sum(model[0].weight.detach().abs() * norms)
    kept = plan.mask("0")[:: plan["0"].pattern.rows]
    for row, mask in zip(scores, kept, strict=True):
        assert row[mask].min() >= row[~mask].max()
    assert (
        all(torch.equal(plan.updated[n], model.get_submodule(n).weight[plan.mask(n)]) for n in plan)
        or pattern != "unstructured"
    )


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_inputs_are_those_that_each_layer_is_given(chunk_size):
    model = lenet()
    network = Network(model, ["0", "2", "4"], [BATCH, BATCH], Scoring(chunk_size=chunk_size))
    with network.undisturbed():
        grams, norms = (MEASUREMENTS[name](network) for name in ("input_gram", "input_norms"))
    hidden = model[:2](BATCH[0]).detach().double()
    samples = 2 * len(hidden)
    torch.testing.assert_close(grams["2"], hidden.T @ hidden / len(hidden))
    torch.testing.assert_close(norms["2"].double(), (samples * grams["2"].diagonal()).sqrt(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grams["0"], BATCH[0].double().T @ BATCH[0].double() / len(hidden))


def test_inputs_of_sequences_count_every_position():
    model = nn.Sequential(nn.Linear(3, 2))
    x = torch.randn(4, 5, 3)
    network = Network(model, ["0"], (x, torch.zeros(4)))
    with network.undisturbed():
        gram = MEASUREMENTS["input_gram"](network)["0"]
    flat = x.reshape(-1, 3).double()
    torch.testing.assert_close(gram, flat.T @ flat / 20)


def test_taylor_ranks_weights_as_snip_and_grains_by_the_sum_of_squares():
    model = lenet()
    one, other = (prune(model, name, 0.3, BATCH) for name in ("taylor", "snip"))
    assert all(torch.equal(one.mask(name), other.mask(name)) for name in one)
    weight, gradient = torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]])
    assert CRITERIA["taylor"](weight, gradient).sum() == 10
    assert CRITERIA["snip"](weight, gradient).sum() == 4


def naive_ria(weight, norms):
    size = weight.abs().tolist()
    return torch.tensor(
        [
            [
                (value / sum(other[column] for other in size) + value / sum(row)) * norms[column] ** 0.5
                if value
                else 0.0
                for column, value in enumerate(row)
            ]
            for row in size
        ],
        dtype=torch.float64,
    )


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 7), st.floats(0, 1))
def test_ria_is_its_definition_whatever_is_zero(seed, rows, columns, zeros):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    weight[torch.rand(rows, columns, generator=draw) < zeros] = 0
    norms = torch.rand(columns, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(CRITERIA["ria"](weight, norms), naive_ria(weight, norms.tolist()))


@given(st.integers(0, 10_000))
def test_relative_importance_adds_up_to_one_for_every_row_and_every_column(seed):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = CRITERIA["ria"](weight, torch.ones(6, dtype=torch.float64))
    assert float(scores.sum()) == pytest.approx(4 + 6)
    # The scale of a layer, and of its inputs, changes no choice.
    torch.testing.assert_close(CRITERIA["ria"](3 * weight, torch.full((6,), 4.0, dtype=torch.float64)), 2 * scores)


@given(st.integers(0, 10_000))
def test_ria_keeps_of_a_unit_of_small_weights_that_magnitude_empties(seed):
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed))
    weight[3] *= 1e-3
    scores = CRITERIA["ria"](weight, torch.ones(16))
    assert scores[3].max() > scores.median()
    assert weight[3].abs().max() < weight.abs().median()
