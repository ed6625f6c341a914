"""What all phases of a recipe take together: what came before the last training counts too."""

from __future__ import annotations

import math

from pollard.pruning.allocation import ALLOCATIONS, reads
from pollard.pruning.criteria import CRITERIA
from pollard.pruning.measurements import COSTS, MEASUREMENTS
from pollard.recipes.build import scoring_batch
from pollard.recipes.problem import Problem
from pollard.recipes.recipe import Recipe


def phases(recipe: Recipe, problem: Problem, training_flops: float) -> dict[str, float] | None:
    """The multiply-adds of each phase, in epochs of dense training; None where a measurement does not say what it takes.

    With s steps an epoch, N training examples, n of them scored on, c cycles, density d:

        dense      max(score_at, weights_at): the epochs of the dense network that weights and scores come from
        scoring    c * rounds * cost(n) / N, of passes of the dense network: what rounds have dropped is multiplied as zeros
        cycles     the sum over k < c of (score_at - schedule_at) * d ** (k / c), each density to the grain
        training   (epochs - schedule_at) * training_flops

    Epochs are whole steps, `round(epoch * s) / s`. `training_flops` is of one step of the last training, of dense training's,
    updates of the topology included. As there, a weight counts once an example, however often a convolution uses it, a
    forward pass as one multiply-add and gradients as two. Evaluations are not counted, nor what solves for new values.
    """
    steps = math.ceil(len(problem.examples.x) / recipe.batch_size)
    score, weights, schedule, end = (
        round(epoch * steps) / steps
        for epoch in (recipe.score_at, recipe.weights_at, recipe.schedule_at, float(recipe.epochs))
    )
    scoring = _scoring(recipe, problem)
    if scoring is None:
        return None
    shares = [recipe.first_density ** (k / recipe.cycles) for k in range(1, recipe.cycles)]
    return {
        "dense": max(score, weights, 0.0),
        "scoring": recipe.cycles * scoring / len(problem.examples.x),
        "cycles": (score - schedule) * sum(shares),
        "training": (end - schedule) * training_flops,
    }


def _scoring(recipe: Recipe, problem: Problem) -> float | None:
    """What one cycle's scores take, in examples of dense training."""
    if recipe.method == "dense":
        return 0.0
    rule = CRITERIA[recipe.rule]
    other = CRITERIA.get(reads(ALLOCATIONS[recipe.allocation]))
    needs = {need for each in (rule, other) if each is not None for need in each.needs if need in MEASUREMENTS}
    if not needs <= COSTS.keys():
        return None
    samples = len(scoring_batch(recipe, problem.examples)[0]) if needs else 0
    once = sum(COSTS[need](samples, problem.ends.classes) for need in needs)
    return (recipe.score_rounds or rule.rounds) * once
