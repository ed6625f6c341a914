"""Rounds: each measures what the one before has kept, and every count is exact."""

from __future__ import annotations

import pytest
import torch

from networks import BATCH, lenet
from pollard.errors import InvalidInput
from pollard.pruning import CRITERIA, MEASUREMENTS, criterion, measurement, prune
from pollard.pruning.rounds import round_densities
from pollard.pruning.scoring import Rounds


@pytest.fixture
def restless():
    """A criterion whose favourites change from round to round, and the densities at which it was asked."""
    seen = []

    @measurement
    def kept_share(network):
        masks = network.masks or {name: torch.ones_like(weight).bool() for name, weight in network.weights.items()}
        seen.append({name: mask.clone() for name, mask in masks.items()})
        return masks

    @criterion(needs=("weight", "kept_share"), across_layers=True)
    def restless(weight, kept_share):
        # The first round likes large weights, each later one small ones.
        return weight.abs() if kept_share.all() else -weight.abs()

    yield seen
    del CRITERIA["restless"], MEASUREMENTS["kept_share"]


def test_each_round_measures_what_the_one_before_has_kept(restless):
    plan = prune(lenet(), "restless", 0.1, rounds=4)
    total = sum(mask.numel() for mask in restless[0].values())
    kept = [sum(int(mask.sum()) for mask in masks.values()) for masks in restless]
    assert kept == [total, *(round(d * total) for d in round_densities(0.1, 4)[:-1])]
    assert plan.nnz == round(0.1 * total)


def test_what_a_round_drops_never_comes_back_unless_it_may(restless):
    strict = prune(lenet(), "restless", 0.25, rounds=2)
    assert all(not (strict.mask(name) & ~restless[1][name]).any() for name in strict)
    restless.clear()
    free = prune(lenet(), "restless", 0.25, rounds=Rounds(2, recover=True))
    assert any((free.mask(name) & ~restless[1][name]).any() for name in free)
    assert free.nnz == strict.nnz


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_rounds_keep_every_count_exact(restless, allocation, pattern):
    plan = prune(lenet(), "restless", 0.07, rounds=9, allocation=allocation, pattern=pattern, min_density=0.02)
    assert plan.nnz == plan["0"].pattern.rows * round(0.07 * plan.weights / plan["0"].pattern.rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": Rounds(0)}, "rounds=0"),
        ({"rounds": Rounds(2, schedule="cubic")}, "schedule='cubic' of rounds"),
    ],
)
def test_bad_rounds_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        prune(lenet(), "snip", 0.1, BATCH, **arguments)


@pytest.mark.filterwarnings("ignore::pollard.errors.ScoresTie")
@pytest.mark.filterwarnings("ignore::pollard.errors.LayerCollapse")
@pytest.mark.parametrize("pattern", ["v2", "v4", "v8"])
@pytest.mark.parametrize("density", [0.3, 0.1, 0.03, 0.02])
def test_rounds_over_layers_of_different_patterns_are_exact_while_single_weights_are_left(pattern, density):
    mixed = {"0": pattern, "2": pattern, "4": "unstructured"}
    plan = prune(lenet(), "iter-snip", density, BATCH, pattern=mixed, rounds=20)
    short = round(density * plan.weights) - plan.nnz
    rows = plan["0"].pattern.rows
    assert 0 <= short < rows
    # What is left of single weights could not have made up the difference to one more vector.
    assert short == 0 or plan["4"].nnz < rows - short
