"""Do two trainings of a pruned network end in one basin? By when it was pruned: linear mode connectivity.

python benchmarks/connectivity.py [--seeds 0 1 2] [--out runs/studies/when]

The networks of studies/when.toml that magnitude prunes to 2 % after 0, 1, 3 and 10 epochs of dense training, and of the last also
with its initial weights. Each is trained once as in the study, and once more from the same start in another order of the examples, along the whole schedule; the
test error is taken along the line between both. What is in the study's folder is not trained again. Writes
records/connectivity.json and the picture of it; seeds that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from pollard.recipes import run
from pollard.recipes.dense import dense_weights
from pollard.recipes.pipeline import Pipeline
from pollard.recipes.problem import Problem
from pollard.recipes.recipe import Recipe
from pollard.recipes.study import Study
from pollard.report.connectivity import straight_line
from pollard.report.plot import Figure, Series, svg
from pollard.training import Examples, Outputs, evaluate, train

HERE = Path(__file__).parent
RECORD = HERE / "records" / "connectivity.json"
PICTURE = HERE.parent / "docs" / "images" / "connectivity.svg"
STUDY = HERE.parent / "studies" / "when.toml"
DRAWN = ("before training", "after 1 epoch", "after 3 epochs", "after 10 epochs")
TICKET = "after 10 epochs, initial weights"
OTHER = 1000  # the order of the second training is that of this seed and the recipe's


def start(recipe: Recipe, problem: Problem, out: Path) -> nn.Module:
    """The network that the recipe's last training starts from."""
    dense = partial(dense_weights, recipe.twin(), out)
    return Pipeline(recipe, problem, out / recipe.digest, dense, lambda *_: Outputs()).start()[0]


def test_error(examples: Examples, model: nn.Module) -> float:
    """The fraction of the test images that `model` gets wrong."""
    return 1.0 - evaluate(model, examples, batch_size=1000).accuracy


def measured(label: str, recipe: Recipe, out: Path) -> dict[str, Any]:
    """A row: the test errors along the line between two trainings of `recipe`, and the barrier."""
    problem = Problem.of(recipe)
    first = run(recipe, out, progress=False).model()
    second = start(recipe, problem, out)
    train(second, problem.examples, {}, replace(recipe.options(), seed=OTHER + recipe.seed))
    line = straight_line(first, second, partial(test_error, problem.evaluation["test"]))
    told = {"label": label, "score_at": recipe.score_at, "density": recipe.density, "seed": recipe.seed}
    return {**told, "barrier": line.barrier, "errors": line.errors}


def figure(rows: list[dict[str, Any]]) -> Figure:
    """The mean test error along the line, by when the network was pruned."""

    def line(moment: str) -> tuple[tuple[float, float], ...]:
        errors = [row["errors"] for row in rows if row["label"] == f"magnitude, {moment}"]
        means = [100 * mean(each) for each in zip(*errors, strict=True)]
        return tuple((step / (len(means) - 1), error) for step, error in enumerate(means))

    return Figure(
        title="From one trained network to another, pruned alike",
        subtitle=f"LeNet-300-100 on MNIST, 2 % kept, trained twice in other orders; {len({row['seed'] for row in rows})} seeds",
        x_label="part of the way",
        y_label="test error, %",
        series=tuple(Series(moment, line(moment)) for moment in DRAWN),
    )


def main() -> None:
    """Measure the seeds that the record does not have, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/studies/when"), help="the folder of the study's runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else []
    there = {(row["label"], row["seed"]) for row in rows}
    for label, recipe in Study.read(STUDY).runs():
        chosen = any(label == f"magnitude, {moment}" for moment in (*DRAWN, TICKET))
        if chosen and recipe.seed in asked.seeds and (label, recipe.seed) not in there:
            rows.append(measured(label, recipe, asked.out))
            RECORD.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
            print(f"{label}, seed {recipe.seed}: barrier {100 * rows[-1]['barrier']:.2f} points")
    PICTURE.write_text(svg(figure(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
