"""Scores of zero: told where they decide, and never rows by index where there is nothing else."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from networks import BATCH, lenet, same
from pollard.errors import LayerCollapse, ScoresTie
from pollard.pruning import prune
from pollard.pruning.budget import Layer
from pollard.pruning.ties import comparable, ranked, ties_at_zero


def zero_head() -> nn.Sequential:
    model = lenet()
    nn.init.zeros_(model[4].weight)
    return model


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("allocation", [None, "erk", "uniform"])
@pytest.mark.parametrize("criterion", ["snip", "synflow", "taylor", "fisher", "force", "obd"])
def test_a_head_of_zeros_is_told_and_no_layer_is_kept_by_rows(criterion, allocation, pattern):
    options = {"allocation": allocation, "pattern": pattern, "rounds": 1}
    with pytest.warns(ScoresTie, match=r"among scores of 0.*All weights of '4' are 0"):
        plan = prune(zero_head(), criterion, 0.2, BATCH, **options)
    assert plan.nnz == round(0.2 * 736 / plan["0"].pattern.rows) * plan["0"].pattern.rows
    assert not plan.collapsed
    for name in ("0", "2"):
        groups = int((plan[name].fan_in() > 0).sum()) // plan[name].pattern.rows
        assert groups > 1.5 * plan[name].grains / plan[name].shape[1], "spread over more rows than it would fill"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScoresTie)
        again = prune(zero_head(), criterion, 0.2, BATCH, **options)
    assert same(plan, again), "the same every time"


def test_more_is_only_ever_added():
    layer = {"a": Layer((4, 8), scores=torch.zeros(32))}
    order = ranked(layer)["a"].scores.argsort(descending=True)
    assert len(set(order.tolist())) == 32


def test_layers_are_compared_by_their_scores_where_any_has_some():
    layers = {"zero": Layer((1, 2), scores=torch.zeros(2)), "some": Layer((1, 2), scores=torch.tensor([0.0, 1.0]))}
    assert comparable(layers)["zero"].scores.tolist() == [0.0, 0.0]
    assert comparable(layers)["some"].scores.tolist() == [0.0, 1.0]
    assert ranked(layers)["some"] is layers["some"]
    alone = comparable({"zero": layers["zero"]})["zero"].scores
    assert ((alone >= 0) & (alone < 1)).all()


def test_what_was_dropped_before_is_not_drawn():
    scores = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])
    assert torch.isinf(ranked({"a": Layer((1, 4), scores=scores)})["a"].scores).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        ([3.0, 0.0, 0.0], 1, {}),
        ([3.0, 0.0, 0.0], 2, {"a": (1, 2)}),
        ([3.0, 0.0, 0.0], 3, {}),
        ([0.0, -1.0], 1, {}),
        ([1.0, 1.0], 1, {}),
    ],
)
def test_a_tie_is_where_the_cut_falls_among_zeros(scores, count, expected):
    assert ties_at_zero({"a": Layer((1, len(scores)), scores=torch.tensor(scores))}, {"a": count}) == expected


def test_inputs_that_are_always_zero_are_told_and_nothing_is_where_scores_decide():
    x, y = BATCH
    x = x.clone()
    x[:, 6:] = 0
    with pytest.warns(ScoresTie, match=r"0: \d+ kept of \d+ that score 0.*Units that are never active"):
        prune(lenet(), "snip", 0.9, (x, y), allocation="uniform")
    prune(lenet(), "snip", 0.1, (x, y), allocation="uniform")


def test_a_zero_layer_among_others_gets_nothing_of_a_global_budget():
    def scored(model, batch=BATCH):
        return prune(model, "magnitude", 0.3, allocation="global")

    with pytest.warns(LayerCollapse):
        assert scored(zero_head())["4"].nnz == 0
