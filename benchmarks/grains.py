"""What training takes by grain: the networks that the studies of grains ended with, a step of each, in turns with dense.

python benchmarks/grains.py [--runs runs/studies] [--rounds 15]

Writes records/grains.json: CPU time of one thread. Topologies are those that the runs kept, not random ones. Dense is given its best layout.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pollard.recipes import Recipe, RunResult
from pollard.recipes.points import read_study
from pollard.recipes.problem import Problem
from pollard.report.machine import machine

RECORDS = Path(__file__).parent / "records"
REPEATS = 2
STUDIES = ("grain-linear", "grain-convolutions")


def step(model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One training step of `recipe`'s SGD, prepared."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=recipe.momentum, weight_decay=recipe.weight_decay)

    def run() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def milliseconds(calls: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median over rounds of what a call takes of its core, all in turns, each behind a call of its own that is not timed.

    CPU time of the one thread: a machine that others use too does not lengthen it, as it does what a clock on the wall says.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, draw = list(calls), random.Random(0)
    for _ in range(rounds):
        draw.shuffle(order)
        for name in order:
            calls[name]()
            started = process_time()
            for _ in range(REPEATS):
                calls[name]()
            samples[name].append(1e3 * (process_time() - started) / REPEATS)
    return {name: median(own) for name, own in samples.items()}


def steps(result: RunResult, x: Tensor, y: Tensor) -> list[Callable[[], None]]:
    """A step of the network that a run ended with; of a dense one on images, another with channels last."""
    found = [step(result.model(), result.recipe, x, y)]
    if result.recipe.method == "dense" and x.dim() == 4:
        last = torch.channels_last
        model = result.model().to(memory_format=last)
        found.append(step(model, result.recipe, x.contiguous(memory_format=last), y))
    return found


def measured(out: Path, study: str, rounds: int) -> Iterator[dict[str, Any]]:
    """A record for each series and density of a study, of its first seed."""
    points = [point for point in read_study(out).points if point["seed"] == 0]
    results = [RunResult.read(out / point["run"]) for point in points]
    recipe = results[0].recipe
    examples = Problem.of(recipe).examples
    x, y = examples.x[: recipe.batch_size], examples.y[: recipe.batch_size]
    ways = [[(f"{run} {way}", call) for way, call in enumerate(steps(each, x, y))] for run, each in enumerate(results)]
    calls = {name: call for own in ways for name, call in own}
    ms = milliseconds(calls, rounds)
    times = [min(ms[name] for name, _ in own) for own in ways]
    best = next(time for time, each in zip(times, results, strict=True) if each.recipe.method == "dense")
    for point, result, time in zip(points, results, times, strict=True):
        yield {
            "study": study, "label": point["label"], "density": point["density"], "batch": recipe.batch_size, "ms": time,
            "speedup": best / time, "nnz": result.nnz, "bytes": result.bytes.total,
            "threads": torch.get_num_threads(), "machine": machine(),
        }  # fmt: skip


def main() -> None:
    """Measure both studies, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="folder of the studies' folders")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for study in STUDIES:
        for record in measured(asked.runs / study, study, asked.rounds):
            records.append(record)
            told = f"{record['ms']:.2f} ms, {record['speedup']:.2f}x, {record['bytes'] / 1e3:.1f} KB"
            sys.stdout.write(f"{study} {record['label']} {record['density']:g}: {told}\n")
            sys.stdout.flush()
    (RECORDS / "grains.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
