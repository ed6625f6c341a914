"""Processor seconds of an epoch, and of scoring, for what studies/budgets.toml trains: in turns, on one thread, which runs that share a machine cannot tell.

python benchmarks/budgets.py [--turns 3]

LeNet-300-100 on MNIST at 10 % kept, and at the densities of four rounds. An epoch is of pollard's own loop, without evaluation; of
methods that move the topology with their updates. Writes records/budgets.json: the median of the turns, and all of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from pollard.nn.surgery import sparsify_
from pollard.recipes import Recipe
from pollard.recipes.build import decide, initial
from pollard.recipes.moving import Span
from pollard.recipes.problem import Problem
from pollard.training import train

RECORD = Path(__file__).parent / "records" / "budgets.json"
DENSITY, ROUNDS, EPOCHS = 0.1, 4, 20
BASE = Recipe(data="mnist", model="lenet-300-100", epochs=EPOCHS, method="dense")
METHODS = ("snip", "grasp", "synflow", "set", "rigl")
Epoch = Callable[[], float]


def an_epoch(recipe: Recipe, model: nn.Module, problem: Problem) -> Epoch:
    """Trains a copy of `model` for the first epoch of the recipe's schedule, and says how long that took."""
    steps = len(problem.examples.x) // recipe.batch_size

    def trained() -> float:
        own, method = copy.deepcopy(model), recipe.moving(Span(EPOCHS * steps, steps))
        started = time.process_time()
        train(own, problem.examples, {}, recipe.options(), method=method, stop=1.0)
        return time.process_time() - started

    return trained


def scored(recipe: Recipe, model: nn.Module, problem: Problem, turns: int) -> tuple[Any, float]:
    """The plan of a recipe, and the median seconds that it took to find."""
    taken = []
    for _ in range(turns):
        started = time.process_time()
        plan = decide(recipe, model, problem.examples)
        taken.append(time.process_time() - started)
    return plan, median(taken)


def contenders(problem: Problem, turns: int) -> dict[tuple[str, float], tuple[Epoch, float]]:
    """Label and density to what trains an epoch, and the seconds of scoring."""
    dense = initial(BASE, problem.ends)
    found = {("dense", 1.0): (an_epoch(BASE, copy.deepcopy(dense), problem), 0.0)}
    train(dense, problem.examples, {}, BASE.options(), stop=1.0)
    recipes = {
        ("magnitude", DENSITY ** (k / ROUNDS)): (
            Recipe(
                data="mnist", epochs=EPOCHS, method="magnitude", allocation="global", density=DENSITY ** (k / ROUNDS)
            ),
            dense,
        )
        for k in range(1, ROUNDS + 1)
    }
    recipes |= {
        (name, DENSITY): (
            Recipe(data="mnist", epochs=EPOCHS, method=name, density=DENSITY),
            initial(BASE, problem.ends),
        )
        for name in METHODS
    }
    for key, (recipe, model) in recipes.items():
        plan, seconds = scored(recipe, model, problem, turns)
        found[key] = an_epoch(recipe, sparsify_(copy.deepcopy(model), plan), problem), seconds
    return found


def main() -> None:
    """Time all in turns, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem.of(BASE)
    found = contenders(problem, given.turns)
    for epoch, _ in found.values():
        epoch()  # kernels are made and chosen
    turns = [{key: epoch() for key, (epoch, _) in found.items()} for _ in range(given.turns)]
    rows = [
        {
            "label": label,
            "density": density,
            "epoch_seconds": median(turn[label, density] for turn in turns),
            "score_seconds": found[label, density][1],
            "turns": [turn[label, density] for turn in turns],
        }
        for label, density in found
    ]
    RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['label']:10} {row['density']:.3f} {row['epoch_seconds']:.2f} s an epoch, {row['score_seconds']:.3f} s to score"
        )


if __name__ == "__main__":
    main()
