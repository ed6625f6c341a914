"""Guided exploration on a few weights: a candidate is drawn, and scored, by the whole of its grain."""

from __future__ import annotations

import pytest
import torch

from pollard.training.methods.gse import gse
from small_weights import STORAGES, change, seen, small_weight

NAN = torch.nan


def explorer(**options):
    """So many draws that every candidate is among them."""
    return gse(0.2, 1000, candidates=50.0, **options)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("guide", ["uniform", "grabo"])
def test_a_candidate_scores_the_sum_of_magnitudes_over_its_grain(storage, guide):
    kept = [[1.0, NAN, NAN, NAN, NAN]] * 2
    weight = small_weight(kept, pattern="v2", storage=storage)
    # |dL/dw| of the free columns 1 to 4, summed over both rows: 5, 6, 4 and 5.5. Column 2 comes, though column 4 has the
    # largest single entry, column 1 the largest first row and column 3 the largest sum with its sign.
    seen(weight, [[0.1, 4.5, 3.0, 2.0, 0.0], [0.1, 0.5, -3.0, 2.0, 5.5]])
    stays, grown = explorer(guide=guide).exchange(change(weight, 0, 1))
    assert grown.tolist() == [2]
    assert stays.tolist() == [False]


def test_the_largest_gradients_of_the_candidates_come_ascending():
    weight = seen(small_weight([[1.0, NAN, NAN, NAN], [NAN, NAN, NAN, 2.0]]), [[9, -3, 1, 2], [0.5, -4, 0.1, 9]])
    stays, grown = explorer().exchange(change(weight, 0, 2))
    assert grown.tolist() == [1, 5]
    assert not stays.any()


def test_the_smallest_weights_make_room_for_them():
    weight = seen(small_weight([[0.3, -2.0, NAN, NAN], [0.2, NAN, NAN, 1.0]]), [[0, 0, 1, 5], [0, 2, 3, 0]])
    stays, grown = explorer().exchange(change(weight, 2, 4))
    assert stays.tolist() == [False, True, False, True]
    assert grown.tolist() == [3, 6]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_row_group_is_as_likely_as_all_of_its_rows_together(storage):
    kept = [[1.0] + [NAN] * 7] * 6
    weight = small_weight(kept, pattern="v2", storage=storage)
    # Row groups of |dy| 5, 4 and 0: the first of it is in its second row, the second of it in its first.
    gradient = torch.zeros(6, 8)
    gradient[1], gradient[2] = 5.0, 4.0
    seen(weight, gradient.tolist())
    free = 2 * 7
    _, grown = explorer().exchange(change(weight, 0, free))
    assert grown.tolist() == [8 * group + column for group in (0, 1) for column in range(1, 8)]


def test_columns_that_nothing_came_through_are_never_candidates():
    weight = small_weight([[1.0, NAN, NAN, NAN]] * 2)
    weight.passes.watch(1)
    x = torch.tensor([[1.0, -2.0, 0.0, 1.0]], dtype=torch.float64)
    weight.layer(x).backward(torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    _, grown = explorer().exchange(change(weight, 0, 4))
    assert grown.tolist() == [1, 3, 5, 7]


def test_guided_by_nothing_all_that_is_free_is_a_candidate():
    weight = small_weight([[1.0, NAN, NAN, NAN]] * 2)
    weight.passes.watch(1)
    x = torch.tensor([[1.0, -2.0, 0.0, 1.0]], dtype=torch.float64)
    weight.layer(x).backward(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    _, grown = explorer(guide="uniform").exchange(change(weight, 0, 6))
    assert grown.tolist() == [1, 2, 3, 5, 6, 7]
