"""Makes the committed records: layers and whole training steps against dense torch in all its ways and the peers, on one thread and on two.

    python benchmarks/run.py [SUITE ...] [--rounds 15] [--out benchmarks/records]

Each suite is one JSON file per number of threads. All contenders of a case run in this one process, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from pollard.formats.store import write_atomic
from pollard.report.bench import ROUNDS, cases, measure, network_cases
from pollard.report.case import Case
from pollard.report.render import bench_tables

PRODUCTS = ("forward", "input_grad", "value_grad", "forward+backward")
PATTERNS = ("unstructured", "v4")
THREADS = (1, 2)
LAYERS = ((4096, 4096, 128), (1024, 1024, 256), (768, 3072, 512))
FEW = (1, 4, 8)
SMALL = ((300, 784, 128), (512, 512, 64))


def layers(threads: int) -> list[Case]:
    """Hidden layers of the usual sizes: inference from half kept to one weight in fifty, training at the usual densities."""
    dense, usual = {"unstructured": (0.45,), "v4": (0.6,)}, (0.2, 0.1, 0.05, 0.02)
    grid = []
    for pattern in PATTERNS:
        same: dict[str, Any] = {"patterns": (pattern,), "threads": (threads,)}
        grid += cases(("forward",), LAYERS, densities=(*dense[pattern], *usual), **same)
        grid += cases(PRODUCTS[1:], LAYERS, densities=(0.1,), **same)
    return grid


def bfloat16_layers(threads: int) -> list[Case]:
    """The largest of them in bfloat16, where a CPU has instructions for it, tiles of AMX for grains of 16 rows, or has none."""
    given: dict[str, Any] = {"densities": (0.1, 0.05), "threads": (threads,), "dtypes": ("bfloat16",)}
    return cases(
        ("forward", "forward+backward"),
        LAYERS[:1],
        patterns=("unstructured", "v4", "v8", "v16", "b16x2", "b16x16"),
        **given,
    )


def small_layers(threads: int) -> list[Case]:
    """Layers so small that calling costs as much as computing."""
    return cases((*PRODUCTS, "step"), SMALL, patterns=PATTERNS, densities=(0.1, 0.05), threads=(threads,))


def few_samples(threads: int) -> list[Case]:
    """One sample, four and eight through a layer whose dense form is in no cache: a token at a time."""
    shapes = [(4096, 4096, batch) for batch in FEW]
    given: dict[str, Any] = {"threads": (threads,), "dtypes": ("float32", "bfloat16")}
    grid = cases(("forward",), shapes, patterns=("unstructured",), densities=(0.5, 0.3, 0.1), **given)
    grid += cases(("forward",), shapes, patterns=("v4", "v8", "b16x2"), densities=(0.1,), **given)
    return grid + cases(("forward",), shapes, patterns=("2:4",), densities=(0.5,), **given)


def networks(threads: int) -> list[Case]:
    """Whole training steps, optimizer included."""
    grid: dict[str, Any] = {"patterns": PATTERNS, "densities": (0.1, 0.05, 0.01), "threads": (threads,)}
    wide = network_cases((3072, 4096, 4096, 10), 128, **grid)
    return wide + network_cases((784, 1024, 1024, 10), 128, optimizer="momentum", **grid)


SUITES: dict[str, Callable[[int], list[Case]]] = {
    one.__name__: one for one in (layers, bfloat16_layers, few_samples, small_layers, networks)
}


def main() -> None:
    """Measure the suites asked for, all by default, and write each as it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="of " + ", ".join(SUITES) + " (default: all)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="samples a contender (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records", help="folder of the records")
    given = parser.parse_args()
    if unknown := set(given.suites) - set(SUITES):
        parser.error(f"unknown suite {', '.join(sorted(unknown))}")
    given.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=160)
    for name in given.suites or SUITES:
        for threads in THREADS:
            records = []
            for case in SUITES[name](threads):
                print(case, file=sys.stderr)
                records.append(measure(case, rounds=given.rounds).as_json())
            lines = ",\n".join(json.dumps(record) for record in records)
            write_atomic(given.out / f"{name}_{threads}_threads.json", f"[\n{lines}\n]\n".encode())
            console.print(*bench_tables(records), sep="\n")


if __name__ == "__main__":
    main()
