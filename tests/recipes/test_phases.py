"""What all phases of a run take, beside a count of every multiply-add as it is done."""

from __future__ import annotations

import json
from dataclasses import replace
from math import ceil

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from pollard.nn.linear import SparseLinear
from pollard.pruning.measurements import COSTS
from pollard.recipes import Recipe, RunResult, run
from pollard.recipes.phases import phases
from pollard.recipes.points import _point
from pollard.recipes.problem import Problem

TRAINED, BATCH, EPOCHS = 60, 8, 4


@pytest.fixture
def recipe(tiny_data):
    return Recipe(
        data=str(tiny_data), model="mlp-16-32-2", density=0.25, epochs=EPOCHS, batch_size=BATCH, method="random"
    )


def counted(recipe, out):
    """The multiply-adds of training `recipe`, three a weight that is kept and example, in whole steps, and its result."""
    total = 0

    def count(module, *_):
        nonlocal total
        if module.training and torch.is_grad_enabled() and isinstance(module, SparseLinear | nn.Linear):
            weights = module.topology.nnz if isinstance(module, SparseLinear) else module.weight.numel()
            total += 3 * weights

    handle = register_module_forward_hook(count)
    try:
        result = run(recipe, out, progress=False)
    finally:
        handle.remove()
    steps = ceil(TRAINED / BATCH)
    return total / (3 * result.weights * steps), result


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"method": "dense"},
        {"schedule_at": 1.5},
        {"method": "magnitude", "score_at": 4.0},
        {"method": "magnitude", "score_at": 4.0, "cycles": 4, "schedule_at": 1.0},
        {"method": "set", "update_every": 3},
        {"method": "gmp", "update_every": 3},
    ],
    ids=lambda changed: " ".join(f"{name} {value}" for name, value in changed.items()) or "static",
)
def test_phases_are_what_is_done(tmp_path, recipe, changed):
    recipe = replace(recipe, **changed)
    before = 0.0
    if recipe.score_at:
        before, _ = counted(recipe.twin(), tmp_path)
    own, result = counted(recipe, tmp_path)
    assert result.phases["dense"] == before
    # Each cycle keeps its density to the grain.
    assert result.phases["cycles"] + result.phases["training"] == pytest.approx(own, abs=EPOCHS / result.weights)
    assert result.phases["scoring"] == 0.0
    assert result.total_flops == sum(result.phases.values())


def test_epochs_are_those_of_the_dense_network_that_are_looked_at(recipe):
    problem = Problem.of(recipe)
    late = replace(recipe, score_at=1.26, weights_at=2.0)
    assert phases(late, problem, 0.25)["dense"] == 2.0
    assert phases(replace(late, weights_at=0.0), problem, 0.25)["dense"] == 10 / 8


@pytest.mark.parametrize(
    ("changed", "examples"),
    [
        ({"method": "snip"}, BATCH),
        ({"method": "snip", "score_batch": 50}, 50),
        ({"method": "grasp", "score_per_class": 5}, 4 * 10),
        ({"method": "synflow"}, 100),
        ({"method": "obd", "score_rounds": 3}, 3 * BATCH * 5 / 3),
        ({"method": "snip", "score_at": 2.0, "cycles": 3}, 3 * BATCH),
        ({"method": "magnitude", "allocation": "owl"}, BATCH / 3),
        ({"method": "rigl", "criterion": "snip"}, BATCH),
    ],
    ids=str,
)
def test_scoring_counts(recipe, changed, examples):
    recipe = replace(recipe, **{"allocation": "", **changed})
    found = phases(recipe, Problem.of(recipe), 0.25)
    assert found["scoring"] == pytest.approx(examples / TRAINED)


def test_a_measurement_that_does_not_say_what_it_takes_leaves_the_total_unknown(recipe, monkeypatch):
    scored = replace(recipe, method="snip", allocation="")
    problem = Problem.of(scored)
    assert phases(scored, problem, 0.25) is not None
    monkeypatch.delitem(COSTS, "gradient")
    assert phases(scored, problem, 0.25) is None
    assert phases(replace(scored, method="dense"), problem, 1.0) is not None


def test_results_of_before_there_were_phases_are_read(tmp_path, recipe):
    result = run(replace(recipe, epochs=1), tmp_path, progress=False)
    path = result.folder / "result.json"
    told = json.loads(path.read_text())
    assert told["phases"] == result.phases
    assert _point(result.folder)["total_flops"] == result.total_flops
    del told["phases"]
    path.write_text(json.dumps(told))
    old = RunResult.read(result.folder)
    assert (old.phases, old.total_flops) == (None, None)
    assert _point(result.folder)["total_flops"] is None
