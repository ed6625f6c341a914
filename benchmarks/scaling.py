"""How much faster two threads are than one, ours, nn.Linear and the fastest dense way: all take turns in one process.

    python benchmarks/scaling.py [--rounds 31]

The records of run.py have one thread count a process, minutes apart: on a machine that others use too, their ratio says more about the
minutes than about the threads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pollard.report.bench import cases, network_cases, verified
from pollard.report.case import Case
from pollard.report.contenders import POLLARD, contest
from pollard.report.dense_ways import NN_LINEAR
from pollard.report.machine import machine
from pollard.report.timing import interleaved

RECORD = Path(__file__).parent / "records" / "scaling.json"
THREADS = (1, 2)
LAYERS = ((4096, 4096, 128), (1024, 1024, 256), (768, 3072, 512))
GRID: dict[str, Any] = {"patterns": ("unstructured", "v4"), "densities": (0.2, 0.1, 0.05)}


def grid() -> list[Case]:
    """Layers and whole steps that are large enough for a second thread to matter, and one step that is not."""
    layers = cases(("forward", "forward+backward"), LAYERS, **GRID)
    wide = network_cases((3072, 4096, 4096, 10), 128, **GRID)
    return layers + wide + network_cases((784, 1024, 1024, 10), 128, optimizer="momentum", **GRID)


def on(threads: int, call: Callable[[], object]) -> Callable[[], object]:
    """`call` on so many threads."""

    def called() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return call()

    return called


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Medians on one and on two threads, and their ratios."""
    prepared = contest(case, peers=False, seed=0)
    contenders = verified(prepared)
    calls = {f"{one.name} {threads}": on(threads, one.call) for threads, one in product(THREADS, contenders)}
    samples = interleaved(calls, rounds)
    ms = [{one.name: median(samples[f"{one.name} {threads}"]) for one in contenders} for threads in THREADS]
    best = [prepared.dense.best(each) for each in ms]
    return {
        "op": case.op, "pattern": case.pattern, "shape": list(case.shape), "network": list(case.network),
        "density": case.density, "rounds": rounds, "machine": machine(),
        "ms": [each[POLLARD] for each in ms], "dense_ms": [each[NN_LINEAR] for each in ms],
        "best_dense_ms": [time for time, _ in best], "best_dense": [way for _, way in best],
        "ratio": ms[0][POLLARD] / ms[1][POLLARD], "dense_ratio": ms[0][NN_LINEAR] / ms[1][NN_LINEAR],
        "best_dense_ratio": best[0][0] / best[1][0],
    }  # fmt: skip


def main() -> None:
    """Measure every case, write the record, print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31, help="samples a contender (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RECORD)
    given = parser.parse_args()
    records = []
    for case in grid():
        record = measure(case, given.rounds)
        print(
            f"{record['ratio']:.2f}x, nn.Linear {record['dense_ratio']:.2f}x, best dense {record['best_dense_ratio']:.2f}x: {case}",
            file=sys.stderr,
        )
        records.append(record)
    given.out.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", "utf-8")


if __name__ == "__main__":
    main()
