"""LeNet-300-100 on the digits trained in each precision: two methods, two densities, five seeds; a few seconds a run.

Runs that are finished are not repeated, interrupted ones go on. What there is so far goes into records/training-precisions.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pollard.recipes import Recipe, RunResult, run
from pollard.recipes.problem import Problem
from pollard.training.options import PRECISIONS
from pollard.training.precision import output_and_loss

RECORD = Path(__file__).parent / "records" / "training-precisions.json"
METHODS = {"snip": {}, "rigl": {"update_every": 20}}
DENSITIES = (0.1, 0.05)
SEEDS = (0, 1, 2, 3, 4)


def recipe(method: str, density: float, precision: str, seed: int) -> Recipe:
    """One run of the grid."""
    return Recipe(method=method, density=density, precision=precision, seed=seed, **METHODS[method])


def activation_bytes(result: RunResult) -> int:
    """What the forward pass of one batch leaves for the backward pass, parameters and indices apart."""
    examples, model = Problem.of(result.recipe).examples, result.model()
    # Copies: the storage of a part is that of the whole.
    x, y = (part[: result.recipe.batch_size].clone() for part in examples)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    left: dict[int, int] = {}

    def leave(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.data_ptr() not in own:
            left[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(leave, lambda tensor: tensor):
        output_and_loss(model, x, y, cross_entropy, result.recipe.precision)
    return sum(left.values())


def row(method: str, density: float, precision: str, done: list[RunResult]) -> dict[str, object]:
    """Mean and spread of the test accuracy over the seeds of one setting, and bytes by moment."""
    accuracies = [round(100 * result.test_accuracy, 2) for result in done]
    held = asdict(done[0].bytes)
    return {
        "method": method,
        "density": density,
        "precision": precision,
        "test_accuracy_percent": accuracies,
        "mean": round(statistics.mean(accuracies), 2),
        "standard_deviation": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else None,
        "test_loss": round(statistics.mean(result.test_loss for result in done), 4),
        "nnz": done[0].nnz,
        "parameter_bytes": held["values"] + held["dense"],
        "index_bytes": held["indices"],
        "gradient_bytes": held["gradients"],
        "optimizer_bytes": held["optimizer"],
        "activation_bytes": activation_bytes(done[0]),
        "versions": done[0].versions,
    }


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder of run folders")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    given = parser.parse_args()
    rows = []
    for method, density, precision in product(METHODS, DENSITIES, PRECISIONS):
        wanted = [recipe(method, density, precision, seed) for seed in SEEDS]
        rows.append(row(method, density, precision, [run(each, given.out, threads=given.threads) for each in wanted]))
        print({name: value for name, value in rows[-1].items() if name != "versions"})
    RECORD.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
