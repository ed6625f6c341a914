"""The border of the best grains, found in passes over rows: the one that a ranking of all of them has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import CRITERIA
from pollard.pruning.masks import top_positions
from pollard.pruning.streaming import ranking
from pollard.pruning.streaming.masks import Listed, Surviving
from pollard.pruning.streaming.ranking import best_of, border
from pollard.pruning.streaming.scores import Scores
from pollard.streamed import source
from strategies import seeds


def pools_of(scores):
    """Layers whose scores are these, whatever their sign."""
    rule = CRITERIA["grasp"]
    return [
        Scores(str(number), Layer(tuple(each.shape)), rule, {"weight": each, "hessian_gradient": torch.ones_like(each)})
        for number, each in enumerate(scores)
    ]


@given(seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]), levels=st.integers(0, 4), data=st.data())
@pytest.mark.parametrize("room", [0, 3, 1 << 24])
def test_it_is_that_of_all_scores_side_by_side_ties_by_place(seed, dtype, levels, data, room):
    draw = torch.Generator().manual_seed(seed)
    scores = [torch.randn(rows, 7, generator=draw, dtype=dtype) for rows in (40, 70, 3)]
    if levels:  # many that are alike, zeros of both signs among them
        scores = [(each * levels).round() / levels for each in scores]
    total = sum(each.numel() for each in scores)
    count = data.draw(st.integers(1, total))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "ROOM", 1)
        patch.setattr(ranking, "ROOM", room)
        pools = pools_of(scores)
        found = border(pools, count)
        masks = [
            Surviving(each, found.threshold, found.last(number)).rows(0, each.layer.shape[0])
            for number, each in enumerate(pools)
        ]
        expected = torch.zeros(total, dtype=torch.bool)
        expected[top_positions(torch.cat([each.flatten() for each in scores]), count)] = True
        assert torch.equal(torch.cat([mask.flatten() for mask in masks]), expected)
        listed = best_of(pools, count).topologies
        for name, mask in zip(listed, masks, strict=True):
            assert torch.equal(listed[name].mask(), mask)
            assert torch.equal(Listed(listed[name]).rows(1, 3), mask[1:3])


def test_scores_that_change_between_passes_are_told(monkeypatch):
    monkeypatch.setattr(ranking, "ROOM", 0)
    (pool,) = pools_of([torch.zeros(40, 7)])
    calls = []

    def fading(weight, hessian_gradient):
        calls.append(0)
        return weight - float(len(calls) > 3)

    with pytest.raises(InvalidInput, match="differently"):
        border([Scores("0", pool.layer, fading, pool.given)], 10)
