from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput, PatternError
from pollard.formats.pattern import Pattern
from pollard.pruning import masks
from pollard.pruning.masks import best_grains, top_mask, top_of_runs, top_positions

# Few distinct numbers, so that most examples are full of ties.
SCORES = st.lists(st.sampled_from([-float("inf"), -1.0, -0.0, 0.0, 1e-30, 0.5, 2.0, float("inf")]), max_size=60)


def oracle(scores: list[float], count: int) -> list[int]:
    """The first `count` of all positions, best score first and then lowest position first."""
    return sorted(sorted(range(len(scores)), key=lambda position: (-scores[position], position))[:count])


@given(SCORES, st.data())
def test_equals_a_full_sort(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    best = oracle(scores, count)
    assert top_positions(torch.tensor(scores), count).tolist() == best
    mask = top_mask(torch.tensor(scores), count)
    assert mask.tolist() == [position in best for position in range(len(scores))]
    assert mask.dtype is torch.bool


@given(SCORES, st.data(), st.sampled_from([1, 2, 3, 8]), st.sampled_from([0.0, 0.5, 3.0]))
def test_a_sample_that_misleads_costs_time_and_nothing_else(scores, data, size, deviations):
    count = data.draw(st.integers(0, len(scores)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_SAMPLE", size)
        patch.setattr(masks, "_DEVIATIONS", deviations)
        assert top_positions(torch.tensor(scores), count).tolist() == oracle(scores, count)


@pytest.mark.parametrize("levels", [10**9, 1000, 3])
@pytest.mark.parametrize("period", [1, 25])
def test_many_scores_equal_a_full_sort(levels, period):
    # 25 is the step of the sample: it sees the same value at every step, and no other.
    scores = torch.randint(levels, (400_000 // period,), generator=torch.Generator().manual_seed(3)).double()
    scores = (scores[:, None] * torch.arange(period)).flatten() if period > 1 else scores
    for count in (1, 1000, 120_000, 399_999):
        expected = np.sort((-scores.numpy()).argsort(kind="stable")[:count])
        assert np.array_equal(top_positions(scores, count).numpy(), expected)


@given(SCORES.filter(len), st.data())
def test_a_larger_count_only_adds(scores, data):
    count = data.draw(st.integers(0, len(scores) - 1))
    smaller, larger = (top_positions(torch.tensor(scores), k).tolist() for k in (count, count + 1))
    assert set(smaller) < set(larger)


def test_ties_across_parts_go_to_the_lowest_positions(monkeypatch):
    monkeypatch.setattr(masks, "PART", 7)
    scores = torch.randint(0, 3, (100,), generator=torch.Generator().manual_seed(0)).double()
    for count in range(101):
        assert top_positions(scores, count).tolist() == oracle(scores.tolist(), count)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_is_ranked_exactly(dtype):
    scores = torch.randn(500, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert top_positions(scores, 77).tolist() == oracle(scores.tolist(), 77)


def test_float64_scores_are_not_rounded():
    scores = torch.tensor([1.0, 1.0 + 2**-40], dtype=torch.float64)
    assert top_positions(scores, 1).tolist() == [1]


def test_strided_scores_that_require_gradients_are_left_as_they_are():
    scores = torch.arange(10.0, requires_grad=True)[::2]
    assert top_positions(scores, 2).tolist() == [3, 4]
    assert scores.tolist() == [0, 2, 4, 6, 8]


def test_the_result_is_ascending_int64():
    positions = top_positions(torch.randn(1000, generator=torch.Generator().manual_seed(2)), 300)
    assert positions.dtype is torch.int64
    assert bool((positions.diff() > 0).all())


def test_nan_names_the_layer():
    with pytest.raises(InvalidInput, match=r"1 NaN among 3 scores of layer 'fc1'"):
        top_positions(torch.tensor([1.0, float("nan"), float("inf")]), 1, layer="fc1")


@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_out_of_range_is_refused(count):
    with pytest.raises(InvalidInput, match=rf"a count of {count} among 3"):
        top_positions(torch.zeros(3), count)


@pytest.mark.parametrize("scores", [torch.zeros(2, 2), torch.tensor(1.0), torch.arange(3)])
def test_other_than_a_row_of_floats_is_refused(scores):
    with pytest.raises(InvalidInput, match="1-D tensor of floats"):
        top_positions(scores, 1)


def test_a_million_equal_scores_cost_no_list_of_their_positions():
    assert np.array_equal(top_positions(torch.zeros(3 << 20), 5).numpy(), np.arange(5))


@given(st.integers(0, 12), st.sampled_from([(1, 2), (2, 4), (3, 5), (8, 16)]), st.integers(0, 2**31))
def test_of_every_m_the_n_highest_are_marked_and_of_equal_ones_the_first(runs, of, seed):
    n, m = of
    scores = torch.randint(3, (runs * m,), generator=torch.Generator().manual_seed(seed)).float()
    marked = top_of_runs(scores, n, m).view(runs, m)
    for run, chosen in zip(scores.view(runs, m).tolist(), marked, strict=True):
        assert chosen.nonzero().view(-1).tolist() == sorted(sorted(range(m), key=lambda at: (-run[at], at))[:n])


def test_what_may_not_be_chosen_leaves_too_little_of_some_m():
    scores = torch.tensor([1.0, -torch.inf, -torch.inf, -torch.inf])
    assert best_grains(scores, 1, Pattern.parse("1:4")).tolist() == [0]
    with pytest.raises(PatternError, match="less than 2 of some 4 weights to choose from of layer 'fc'"):
        best_grains(scores, 2, Pattern.parse("2:4"), layer="fc")
