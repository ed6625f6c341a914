"""Rounds of flow told by two vectors each: the masks that all rounds leave, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pollard
from pollard.formats.topology import Topology
from pollard.pruning.allocation import Layer
from pollard.pruning.criteria import CRITERIA, criterion
from pollard.pruning.masks import top_positions
from pollard.pruning.streaming import decision as streamed_decision
from pollard.pruning.streaming import ranking
from pollard.pruning.streaming.flow import Bar, Flows, Outlasting
from pollard.pruning.streaming.masks import Listed, Surviving
from pollard.pruning.streaming.ranking import border
from pollard.streamed import source
from pollard.streamed.source import Source
from strategies import seeds

ROWS, COLUMNS = 70, 23


@dataclass(frozen=True, slots=True, eq=False)
class There(Source):
    """A matrix that is there."""

    matrix: Tensor

    @property
    def shape(self) -> Any:
        return tuple(self.matrix.shape)

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    def rows(self, first: int, last: int) -> Tensor:
        return self.matrix[first:last]


def numbers(seed, *shape):
    """Some of which are alike, and some zero."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn * 8).round() / 8 if seed % 2 else drawn


def flows(weights, seed, allowed=None, scale=1.0):
    a, b = numbers(seed + 1, ROWS) * scale, numbers(seed + 2, COLUMNS) + 0.1
    rule, layer = CRITERIA["synflow"], Layer((ROWS, COLUMNS))
    return Flows("0", layer, rule, {}, allowed=allowed, weights=There(weights), a=a, b=b).quickest()


def scores_of(pool, weights):
    return weights.double().abs() * (pool.a[:, None] * pool.b)


@given(
    seed=seeds,
    scale=st.sampled_from([1.0, 1e-200, 1e200, 1e-20]),
    given_before=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_rounds_leave_what_they_leave_of_masks_that_are_there(seed, scale, given_before, dtype):
    weights = (numbers(seed, ROWS, COLUMNS) * 2 - 1).to(dtype)
    kept = numbers(seed + 9, ROWS, COLUMNS) > 0.3 if given_before else torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    left: Source | None = Listed(Topology.from_mask(kept)) if given_before else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "CACHED", COLUMNS * (1 + seed % 40))
        for number in range(6):
            pool = flows(weights, seed + number, left, scale)
            scores = scores_of(pool, weights).masked_fill(~kept, -torch.inf).flatten()
            best = top_positions(scores, int(kept.sum()) * 3 // 4)
            kept = torch.zeros(ROWS * COLUMNS, dtype=torch.bool).index_fill(0, best, True).view(ROWS, COLUMNS)
            left = pool.after(border([pool], len(best)), 0)
            assert torch.equal(left.rows(0, ROWS), kept)
            assert torch.equal(left.rows(3, 40), kept[3:40])
            places, values = left.picked(There(2 * weights), 0, ROWS)
            assert torch.equal(values, 2 * weights[places.rows(), places.columns])


@given(seed=seeds, count=st.integers(1, 3000), few=st.sampled_from([0, 8, 400]))
def test_a_border_that_is_guessed_is_the_border(seed, count, few):
    weights = [numbers(seed + each, ROWS, COLUMNS) for each in (0, 40)]
    pools = [flows(each, seed + 7 * number) for number, each in enumerate(weights)]
    exact = torch.cat([scores_of(*pair).flatten() for pair in zip(pools, weights, strict=True)])
    kept = top_positions(exact, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "ROOM", few)
        found = border(pools, count)
        assert found.threshold == float(exact[kept].min())
        assert found.layer * ROWS * COLUMNS + found.position == int(kept[exact[kept] == found.threshold][-1])


def test_a_guess_takes_one_pass(monkeypatch):
    asked = []
    monkeypatch.setattr(There, "rows", lambda self, first, last: asked.append(first) or self.matrix[first:last])
    monkeypatch.setattr(There, "at", lambda self, rows, columns: self.matrix[rows, columns])
    border([flows(numbers(2, ROWS, COLUMNS).float(), 4)], 800)
    assert asked == [0]


def test_a_round_that_a_later_one_covers_is_forgotten():
    a, b = torch.rand(ROWS, dtype=torch.float64) + 1, torch.rand(COLUMNS, dtype=torch.float64) + 1
    first = Bar(a, b, 0.1, -1)
    mask = Outlasting(There(torch.rand(ROWS, COLUMNS)), (first,))
    assert len(mask.with_bar(Bar(a, b, 0.2, -1)).bars) == 1
    assert len(mask.with_bar(Bar(a, b, 0.1, 3)).bars) == 2  # as high, but for ties
    assert len(mask.with_bar(Bar(a * torch.linspace(1, 3, ROWS), b, 0.2, -1)).bars) == 2
    assert len(mask.with_bar(Bar(torch.zeros_like(a), b, 0.2, -1)).bars) == 1  # which nothing passes


def trial(rounds, rule="synflow", **options):
    """The plan of a network without memory, and that of its dense twin."""
    with pollard.never_dense(0):
        model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))
    plans = [pollard.prune(model, rule, 0.05, input_shape=(30,), rounds=rounds, **options)]
    return *plans, pollard.prune(pollard.densify_(model), rule, 0.05, input_shape=(30,), rounds=rounds, **options)


@pytest.fixture
def masks(monkeypatch):
    """The kinds of masks that rounds leave."""
    made = []
    left_of = streamed_decision._left_of
    monkeypatch.setattr(streamed_decision, "ROOM", 50)
    monkeypatch.setattr(streamed_decision, "_left_of", lambda *args: made.append(left_of(*args)) or made[-1])
    return made


def test_rounds_of_synflow_are_told_by_vectors(masks):
    streamed, dense = trial(40)
    assert {type(each) for each in masks} == {Outlasting}
    assert all(streamed[name].same_as(dense[name]) for name in dense)


@pytest.mark.filterwarnings("ignore::pollard.errors.LayerCollapse")  # the lowest flow is what is kept there
def test_what_is_no_flow_of_single_weights_is_told_by_its_lowest_score(masks):
    @criterion(needs=("synaptic_flow",), across_layers=True, by_row=True)
    def squared_flow(synaptic_flow):
        return synaptic_flow**2

    try:
        for options in ({"rule": squared_flow}, {"pattern": "v2"}, {"rule": "synflow", "invert": True}):
            trial(4, **options)
            assert {type(each) for each in masks} == {Surviving}
            masks.clear()
    finally:
        CRITERIA.pop("squared-flow")


def test_a_flow_of_weights_that_are_scaled_to_be_in_range_is_told_by_its_lowest_score(masks):
    with pollard.never_dense(0):
        model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(26)))
        for each in model:
            nn.init.normal_(each.weight, std=1e-36)
    streamed = pollard.prune(model, "synflow", 0.5, input_shape=(8,), rounds=3)
    dense = pollard.prune(pollard.densify_(model), "synflow", 0.5, input_shape=(8,), rounds=3)
    assert all(streamed[name].same_as(dense[name]) for name in dense)
    assert {type(each) for each in masks} == {Surviving}
