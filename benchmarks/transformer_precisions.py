"""A small transformer on MNIST trained in each precision: two densities, three seeds, accuracy and bytes by moment.

Images are cut into patches of 7 x 7, a token each; all linear layers are pruned by SNIP before training starts. What there is
so far goes into records/transformer-precisions.json, and what it holds of the same setting is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from allocations import allocated
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import pollard
from pollard import data
from pollard.report.machine import machine
from pollard.report.measure import module_bytes
from pollard.training import Examples, TrainingOptions, train
from pollard.training.loop import Trained
from pollard.training.options import PRECISIONS
from pollard.training.precision import output_and_loss

RECORD = Path(__file__).parent / "records" / "transformer-precisions.json"
DENSITIES = (0.1, 0.05)
SEEDS = (0, 1, 2)
SIDE, PATCH, WIDTH, HEADS, DEPTH = 28, 7, 64, 4, 2
TOKENS = (SIDE // PATCH) ** 2
EPOCHS, BATCH = 3, 100


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(batch, TOKENS, WIDTH)` to as many."""
        heads = self.qkv(self.before_attention(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class Transformer(nn.Module):
    """Images `(batch, SIDE * SIDE)` to the scores of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        patches = x.unflatten(1, (SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)).transpose(2, 3)
        tokens = self.embed(patches.flatten(3).flatten(1, 2)) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def trained(digits: data.DataSet, density: float, precision: str, seed: int, epochs: int) -> Trained:
    """One run: pruned by SNIP, then trained sparse."""
    torch.manual_seed(seed)
    model = Transformer()
    plan = pollard.prune_at_init(model, "snip", density=density, batch=(digits.train_x[:1000], digits.train_y[:1000]))
    pollard.sparsify_(model, plan)
    options = TrainingOptions(
        epochs=epochs, batch_size=BATCH, optimizer="adamw", lr=0.01, weight_decay=0.01, precision=precision, seed=seed
    )
    examples, test = Examples(digits.train_x, digits.train_y), Examples(digits.test_x, digits.test_y)
    return train(model, examples, {"test": test}, options)


def bytes_by_moment(run: Trained, digits: data.DataSet, precision: str) -> dict[str, int]:
    """What is held throughout; and, allocated beyond it, what a forward pass leaves and the most within a whole step."""
    held = asdict(module_bytes(run.model, run.optimizer))
    x, y = digits.train_x[:BATCH], digits.train_y[:BATCH]

    def forward() -> Tensor:
        return output_and_loss(run.model, x, y, cross_entropy, precision)[1]

    def step() -> None:
        run.optimizer.zero_grad()
        forward().backward()
        run.optimizer.step()

    step()  # what kernels keep is made by now
    run.optimizer.zero_grad()
    left, _ = allocated(forward)
    run.optimizer.zero_grad()
    _, most = allocated(step)
    return {
        "parameter_bytes": held["values"] + held["dense"],
        "index_bytes": held["indices"],
        "gradient_bytes": held["gradients"],
        "optimizer_bytes": held["optimizer"],
        "activation_bytes": left,
        "peak_bytes": held["values"] + held["dense"] + held["indices"] + held["optimizer"] + most,
    }


def row(digits: data.DataSet, density: float, precision: str, given: argparse.Namespace) -> dict[str, Any]:
    """Mean and spread of the test accuracy over the seeds of one setting, bytes by moment."""
    done = [trained(digits, density, precision, seed, given.epochs) for seed in SEEDS]
    accuracies = [round(100 * run.record["test_accuracy"], 2) for run in done]
    return {
        "method": "snip",
        "density": density,
        "precision": precision,
        "epochs": given.epochs,
        "test_accuracy_percent": accuracies,
        "mean": round(statistics.mean(accuracies), 2),
        "standard_deviation": round(statistics.stdev(accuracies), 2),
        "test_loss": round(statistics.mean(run.record["test_loss"] for run in done), 4),
        **bytes_by_moment(done[0], digits, precision),
    }


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    # Large results of kernels are taken from torch too, whose profiler counts them.
    os.environ["POLLARD_RESULTS"] = "heap"
    digits = data.load("mnist")
    rows = json.loads(RECORD.read_text())["rows"] if RECORD.exists() else []
    for density, precision in product(DENSITIES, PRECISIONS):
        wanted = (density, precision, given.epochs)
        if wanted not in {(each["density"], each["precision"], each["epochs"]) for each in rows}:
            rows.append(row(digits, *wanted[:2], given))
            RECORD.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
