"""Pruning before training without dense weights: time and peak memory, in a fresh process, beside the dense path where it fits.

A network of ReLU layers is born within `pollard.never_dense`, pruned by a criterion that looks at one batch, made sparse, and
trained some steps, its topology moved by --moving if asked. Examples are of ten classes, a random direction each, in noise. Prints
JSON: seconds and peaks of resident memory above what it was after a small network went the same way, so that compiling and
importing are left out. With --dense the same network has memory for its weights; with --limit the address space is limited, and
that no dense weight fits is tried.

    python benchmarks/never_dense.py --widths 16384-32768-32768-10 --density 0.005
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from memory import limit_address_space
from torch import Tensor, nn

import pollard
from pollard.pruning import Forecast
from pollard.report.measure import forget_peak_rss, peak_rss_bytes, rss_bytes
from pollard.training.methods import METHODS

CLASSES = 10
WARM = (64, 64, CLASSES)


def network(widths: tuple[int, ...], *, dense: bool) -> nn.Sequential:
    """Layers with ReLU between them, with memory for their weights or without."""
    with pollard.never_dense(seed=0):
        layers = [each for a, b in pairwise(widths) for each in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    return pollard.densify_(model) if dense else model


def examples(count: int, width: int) -> tuple[Tensor, Tensor]:
    """Inputs `(count, width)` and their classes."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    return torch.randn(count, width, generator=draw) + torch.randn(CLASSES, width, generator=draw)[labels], labels


def lived(widths: tuple[int, ...], given: argparse.Namespace, *, steps: int, dense: bool = False) -> dict[str, Any]:
    """What birth, pruning, making sparse and training took, and the losses."""
    told: dict[str, Any] = {}
    batch = examples(given.batch, widths[0])
    started, peak = time.perf_counter(), 0

    def note(what: str) -> None:
        nonlocal started, peak
        told[what] = {"seconds": round(time.perf_counter() - started, 2), "peak": peak_rss_bytes()}
        peak = max(peak, peak_rss_bytes())
        forget_peak_rss()
        started = time.perf_counter()

    def foreseen(forecast: Forecast) -> None:
        spent = time.perf_counter() - started
        told["foreseen"] = {"seconds": forecast.seconds, "peak": forecast.peak_bytes, "told after": round(spent, 2)}

    forget_peak_rss()
    model = network(widths, dense=dense)
    note("born")
    rounds = given.rounds or None
    plan = pollard.prune(model, given.criterion, given.density, batch, rounds=rounds, forecast=foreseen)
    note("pruned")
    pollard.sparsify_(model, plan)
    note("made sparse")
    name, _, every = given.moving.partition(":")
    method = METHODS[name or "static"](plan.density, 10 * max(1, steps), **({"every": int(every)} if every else {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=given.rate, momentum=0.9)
    sparsifier = pollard.Sparsifier(model, optimizer, method)
    losses = [stepped(model, sparsifier, batch) for _ in range(steps)]
    note("trained")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(model.state_dict(), path)
        pollard.load_sparse(network(widths, dense=False), path)
    note("saved and loaded")
    return told | {"kept": plan.nnz, "weights": plan.weights, "losses": losses, "updates": sparsifier.updates}


def stepped(model: nn.Module, sparsifier: pollard.Sparsifier, batch: tuple[Tensor, Tensor]) -> float:
    """The loss before a step."""
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    sparsifier.step()
    return loss.item()


def main() -> None:
    """Let a network live and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", default="4096-8192-8192-10", help="neurons per layer")
    parser.add_argument("--density", type=float, default=0.005)
    parser.add_argument("--criterion", default="snip")
    parser.add_argument("--rounds", type=int, default=0, help="of scoring; 0 is the criterion's own")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--moving", default="", help="a method and the steps between its updates, as in rigl:2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="MiB of address space to leave beyond what importing maps")
    parser.add_argument("--dense", action="store_true", help="give the weights memory first")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lived(WARM, argparse.Namespace(**{**vars(given), "density": 0.1, "rounds": 1}), steps=2)
    baseline = rss_bytes()
    dense_weight = limit_address_space(given.limit << 20) if given.limit else "not tried"
    told = lived(tuple(map(int, given.widths.split("-"))), given, steps=given.steps, dense=given.dense)
    for name, each in told.items():
        if isinstance(each, dict) and name != "foreseen":
            each["peak"] -= baseline
    asked = {
        name: getattr(given, name) for name in ("widths", "density", "criterion", "batch", "threads", "moving", "dense")
    }
    print(json.dumps(asked | {"dense_weight": dense_weight, "dense_bytes": 4 * told["weights"]} | told, indent=2))


if __name__ == "__main__":
    main()
