"""Where weights come that nobody scores, and what they start from."""

from __future__ import annotations

import torch

from pollard.training.methods import grow
from small_weights import change, small_weight

NAN = torch.nan


def test_what_comes_starts_at_zero_or_from_the_generators_normal_numbers():
    draw = torch.Generator().manual_seed(4)
    assert grow.from_zero(5, draw) == 0.0
    expected = torch.randn(7, generator=torch.Generator().manual_seed(4)) * 0.25
    assert torch.equal(grow.from_normal(0.25)(7, draw), expected)


def test_at_random_means_any_place_that_is_not_kept_the_dropped_ones_included():
    weight = small_weight([[1.0, NAN, 2.0], [NAN, 3.0, NAN]])
    stays = torch.tensor([True, False, True])
    came = [grow.at_random(change(weight, 2, 4, seed=seed), stays, 2).tolist() for seed in range(60)]
    assert {place for pair in came for place in pair} == {1, 2, 3, 5}
    assert all(first < second for first, second in came)
    assert len({tuple(pair) for pair in came}) == 6
