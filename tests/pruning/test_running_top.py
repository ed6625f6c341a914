"""A top-k that is streamed chooses what one over all scores at once would."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.pruning.masks import top_positions
from pollard.pruning.running_top import EXCLUDED, RunningTop

# Few distinct numbers, so that most examples are full of ties.
SCORES = st.lists(st.sampled_from([EXCLUDED, 0.0, 1e-30, 0.5, 0.5, 2.0, float("inf")]), max_size=80)


def streamed(scores, count, cuts):
    running = RunningTop(count)
    for first, last in pairwise([0, *sorted(cuts), len(scores)]):
        running.add(first, scores[first:last].clone())
    return running.positions()


def at_once(scores, count):
    candidates = torch.nonzero(scores >= 0).flatten()
    return candidates[top_positions(scores[candidates], min(count, len(candidates)))]


@given(SCORES, st.integers(0, 90), st.data())
def test_any_cut_into_pieces_chooses_the_same(scores, count, data):
    cuts = data.draw(st.lists(st.integers(0, len(scores)), max_size=6))
    scores = torch.tensor(scores)
    assert torch.equal(streamed(scores, count, cuts), at_once(scores, count))


@given(SCORES, st.integers(0, 90), st.sampled_from([torch.float32, torch.float64]))
def test_one_position_at_a_time_chooses_the_same(scores, count, dtype):
    scores = torch.tensor(scores, dtype=dtype)
    assert torch.equal(streamed(scores, count, range(len(scores))), at_once(scores, count))


@given(SCORES, st.integers(0, 20))
def test_it_can_be_asked_in_between(scores, count):
    scores = torch.tensor(scores)
    running, half = RunningTop(count), len(scores) // 2
    running.add(0, scores[:half].clone())
    assert torch.equal(running.positions(), at_once(scores[:half], count))
    running.add(half, scores[half:].clone())
    assert torch.equal(running.positions(), at_once(scores, count))


@pytest.mark.parametrize("levels", [2, 50, 10**9])
@pytest.mark.parametrize("count", [0, 1, 700, 200_000, 400_000])
def test_many_scores_in_large_pieces(levels, count):
    # More than what is held before it is narrowed, several times over.
    draw = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (300_000,), generator=draw).float()
    scores[torch.rand(len(scores), generator=draw) < 0.1] = EXCLUDED
    assert torch.equal(streamed(scores, count, range(0, len(scores), 9_999)), at_once(scores, count))


def test_nothing_seen_is_nothing_chosen():
    assert RunningTop(3).positions().tolist() == []
