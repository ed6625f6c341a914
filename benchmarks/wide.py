"""Train the widest network that the authors of SET report for a laptop with 16 GB: 600,000 neurons in each hidden layer.

3312-600000-600000-600000-5, ReLU: 1,803,317 neurons with inputs and outputs, on random examples of the shape of their data
set (3,312 features, 5 classes). Erdos-Renyi densities with epsilon 10: 33 million weights of 722 billion. SGD with momentum;
SET drops 30 % and grows as many at random, every --every steps. Prints JSON: what is held, seconds a step and an update,
peak memory; writes records/wide.json with --record.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import nn

import pollard
from pollard.report.measure import module_bytes, peak_rss_bytes, rss_bytes
from pollard.training.methods import METHODS

RECORD = Path(__file__).parent / "records" / "wide.json"


def network(widths: list[int], epsilon: float) -> nn.Sequential:
    """Sparse layers of density `epsilon (in + out) / (in out)`, at most 1, with ReLU between them."""
    draw = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        density = min(1.0, epsilon * (inputs + outputs) / (inputs * outputs))
        layers += [pollard.nn.SparseLinear.random(inputs, outputs, density, generator=draw), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained(
    sparsifier: pollard.Sparsifier, widths: list[int], batch: int, steps: int
) -> tuple[list[float], list[float]]:
    """Seconds and losses of so many steps on one random batch."""
    x, y = torch.randn(batch, widths[0]), torch.randint(0, widths[-1], (batch,))
    seconds, losses = [], []
    for _ in range(steps):
        started = time.perf_counter()
        sparsifier.zero_grad()
        loss = nn.functional.cross_entropy(sparsifier.model(x), y)
        loss.backward()
        sparsifier.step()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    return seconds, losses


def costs(seconds: list[float], every: int) -> dict[str, float]:
    """Medians of a step with the topology at rest and, beyond two of those, of an update and the step after it; the first two tune."""
    numbered = list(enumerate(seconds, start=1))
    at_rest = median(each for step, each in numbered if step > 2 and step % every > 1)
    moving = median(each for step, each in numbered if step % every == 0)
    after = median(each for step, each in numbered if step > 1 and step % every == 1)
    return {
        "seconds_a_step": round(at_rest, 3),
        "seconds_an_update": round(moving + after - 2 * at_rest, 3),
    }


def main() -> None:
    """Build, train some steps, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", default="3312-600000-600000-600000-5")
    parser.add_argument("--epsilon", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--record", action="store_true", help="write records/wide.json")
    given = parser.parse_args()
    widths = [int(width) for width in given.widths.split("-")]
    before = rss_bytes()
    started = time.perf_counter()
    model = network(widths, given.epsilon)
    built = time.perf_counter() - started
    optimizer = torch.optim.SGD(model.parameters(), 3e-4, momentum=0.9, weight_decay=2e-4, fused=True)
    sparsifier = pollard.Sparsifier(model, optimizer, METHODS["set"](0.5, 10 * given.steps, every=given.every))
    seconds, losses = trained(sparsifier, widths, given.batch, given.steps)
    told = {
        "network": given.widths,
        "neurons": sum(widths),
        "weights_kept": sum(weight.topology.nnz for weight in sparsifier.weights.values()),
        "weights_of_the_dense_form": sum(math.prod(pair) for pair in pairwise(widths)),
        "batch": given.batch,
        "threads": torch.get_num_threads(),
        "seconds_to_build": round(built, 2),
        **costs(seconds, given.every),
        "bytes": asdict(module_bytes(model, optimizer)),
        "peak_above_baseline": peak_rss_bytes() - before,
        "losses": [round(loss, 4) for loss in losses],
    }
    print(json.dumps(told, indent=2))
    if given.record:
        RECORD.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
