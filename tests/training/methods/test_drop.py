"""Which weights stay, of a few that are written out."""

from __future__ import annotations

import pytest
import torch

from pollard.training.methods import drop
from small_weights import STORAGES, change, seen, small_weight

NAN = torch.nan


def staying(rule, weight, keep):
    """The positions of what stays."""
    return weight.topology.positions(rule(change(weight, keep, keep))).tolist()


@pytest.mark.parametrize("storage", STORAGES)
def test_the_largest_stay_and_of_equal_ones_the_first(storage):
    weight = small_weight([[1.0, -3.0, NAN, 2.0], [NAN, -2.0, 2.0, 0.5]], storage=storage)
    assert [staying(drop.by_magnitude, weight, keep) for keep in (0, 1, 2, 3, 4)] == [
        [],
        [1],
        [1, 3],
        [1, 3, 5],
        [1, 3, 5, 6],
    ]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_grain_has_the_sum_of_its_magnitudes(storage):
    weight = small_weight([[5.0, 3.0, 0.0], [0.0, -3.0, 1.0]], pattern="v2", storage=storage)
    assert staying(drop.by_magnitude, weight, 1) == [1]
    assert staying(drop.by_magnitude, weight, 2) == [0, 1]


@pytest.mark.parametrize("storage", STORAGES)
def test_both_signs_lose_the_same_share(storage):
    """SET: the smallest positive and the largest negative weights go, each as many in proportion."""
    weight = small_weight([[3.0, 1.0, -1.0, -2.0], [0.5, 0.0, -0.2, 2.0]], storage=storage)
    # Five of four positive and three negative: 20 / 7 is 3 and 2. By magnitude alone 0.5 would not outlive -1.
    assert staying(drop.by_signed_magnitude, weight, 5) == [0, 1, 2, 3, 7]
    assert staying(drop.by_signed_magnitude, weight, 4) == [0, 2, 3, 7]
    assert staying(drop.by_signed_magnitude, weight, 7) == [0, 1, 2, 3, 4, 6, 7]


def test_shares_are_of_the_numbers_of_each_sign_whatever_their_sizes():
    weight = small_weight([[9.0, 8.0, 7.0, -0.3, -0.2, -0.1]])
    assert staying(drop.by_signed_magnitude, weight, 2) == [0, 3]
    assert staying(drop.by_signed_magnitude, weight, 4) == [0, 1, 3, 4]


def test_zeros_go_first_and_the_last_of_them_before_the_others():
    weight = small_weight([[0.0, 2.0, 0.0, -1.0, 0.0]])
    assert staying(drop.by_signed_magnitude, weight, 2) == [1, 3]
    assert staying(drop.by_signed_magnitude, weight, 3) == [0, 1, 3]
    assert staying(drop.by_signed_magnitude, weight, 4) == [0, 1, 2, 3]
    assert staying(drop.by_signed_magnitude, small_weight([[0.0, 0.0]]), 1) == [0]


def test_the_sign_of_a_grain_is_that_of_its_sum_and_its_size_that_of_its_magnitudes():
    # Sums 2.5, 2, -1 and -1.5; magnitudes 2.5, 4, 3 and 1.5.
    weight = small_weight([[1.5, 3.0, 1.0, -1.0], [1.0, -1.0, -2.0, -0.5]], pattern="v2")
    assert staying(drop.by_signed_magnitude, weight, 2) == [1, 2]


@pytest.mark.parametrize("strength, stays", [(0.0, [0, 1]), (1.0, [0, 2]), (10.0, [2, 3])])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_gradient_counts_as_much_as_it_is_told_to(storage, strength, stays):
    weight = seen(small_weight([[3.0, -2.0, 1.0, 0.5]], storage=storage), [[0.1, 0.2, -2.5, 2.0]])
    assert staying(drop.by_magnitude_and_gradient(strength), weight, 2) == stays


def test_a_layer_without_a_gradient_counts_as_one_of_zero():
    assert staying(drop.by_magnitude_and_gradient(1.0), small_weight([[1.0, -3.0, 2.0]]), 2) == [1, 2]
