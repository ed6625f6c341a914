"""Timings that can be believed: every contender in one process, interleaved round by round, verified before it is timed.

A record says how long a sparse operation took, how long dense torch took beside it, as users call it and in the fastest of
its ways, and what the peers took that happen to be installed. Medians are the figures, minima and maxima are kept, and a
case that dense wins is marked, not dropped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise, product
from typing import Any

from pollard.errors import InvalidInput
from pollard.report.case import Case, Contender
from pollard.report.contenders import POLLARD, Contest, contest
from pollard.report.dense_ways import NN_LINEAR, SLOWER
from pollard.report.machine import machine
from pollard.report.timing import interleaved, on_threads, seconds_once

ROUNDS = 15


@dataclass(frozen=True)
class Record:
    """One timed case: milliseconds are medians over the rounds, `spread_ms` is [fastest, slowest] for each contender.

    dense_ms: `nn.Linear` in the precision of the case. best_dense_ms: the fastest of all ways that torch has in that
    precision, `nn.Linear` included, named by `best_dense`. bf16_dense_ms: the same in bfloat16, None where this CPU has none.
    `speedup`, `nn_linear_speedup` and `bf16_speedup` are these over `ms`; `dense_wins` marks a case that the fastest dense
    way wins. `gflops` counts the kept weights only. A peer that is not installed, or has no such operation, is None.
    """

    op: str
    pattern: str
    dtype: str
    shape: list[int]
    density: float
    threads: int
    ms: float
    gflops: float
    dense_ms: float
    best_dense_ms: float
    best_dense: str
    bf16_dense_ms: float | None
    bf16_dense: str | None
    speedup: float
    nn_linear_speedup: float
    bf16_speedup: float | None
    dense_wins: bool
    torch_sparse_ms: float | None
    mkl_ms: float | None
    scipy_ms: float | None
    target: str
    rounds: int
    network: list[int] = field(default_factory=list)
    optimizer: str | None = None
    machine: dict[str, str] = field(default_factory=dict)
    spread_ms: dict[str, list[float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)


def cases(
    ops: Sequence[str],
    shapes: Sequence[tuple[int, int, int]],
    *,
    patterns: Sequence[str],
    densities: Sequence[float],
    threads: Sequence[int] = (1,),
    optimizer: str = "adam",
    dtypes: Sequence[str] = ("float32",),
) -> list[Case]:
    """Every combination, grouped by shape so that neighbouring rows of the table can be compared.

    >>> grid = cases(["forward"], [(64, 32, 8)], patterns=["v4"], densities=[0.1, 0.05])
    >>> [case.density for case in grid]
    [0.1, 0.05]
    """
    grid = product(threads, dtypes, shapes, ops, patterns, densities)
    return [
        Case(op, pattern, shape, density, count, (), optimizer, dtype)
        for count, dtype, shape, op, pattern, density in grid
    ]


def network_cases(
    widths: Sequence[int],
    batch: int,
    *,
    patterns: Sequence[str],
    densities: Sequence[float],
    threads: Sequence[int] = (1,),
    optimizer: str = "adam",
    dtypes: Sequence[str] = ("float32",),
) -> list[Case]:
    """Whole training steps of the fully connected network with these `widths`, first input to last output.

    >>> [case.shape for case in network_cases((784, 1024, 10), 128, patterns=["v4"], densities=[0.1])]
    [(1024, 784, 128)]
    """
    if len(widths) < 2:
        raise InvalidInput(
            f"a network of widths {tuple(widths)}", "at least an input and an output", "Write widths as in 784-300-10."
        )
    out_features, in_features = max(((after, before) for before, after in pairwise(widths)), key=math.prod)
    shape, network = (out_features, in_features, batch), tuple(widths)
    grid = product(threads, dtypes, patterns, densities)
    return [
        Case("step", pattern, shape, density, count, network, optimizer, dtype)
        for count, dtype, pattern, density in grid
    ]


def measure(case: Case, *, rounds: int = ROUNDS, peers: bool = True, seed: int = 0) -> Record:
    """Times one case against dense torch in all its ways and, where `peers`, every installed library that has the operation.

    Raises KernelError when a contender's result is not what it must be: a wrong result has no speed.
    """
    with on_threads(case.threads):
        prepared = contest(case, peers=peers, seed=seed)
        samples = interleaved({one.name: one.call for one in verified(prepared)}, rounds)
    return _record(case, prepared, samples)


def verified(prepared: Contest) -> list[Contender]:
    """The contenders that are worth timing, each held against its reference: all but the dense ways that are clearly not the fastest.

    `nn.Linear` in the precision of the case always is. Raises KernelError when one is off by more than rounding explains.
    """
    for one in prepared:
        one.verify()
    kept = [prepared.pollard, prepared.dense.whole[NN_LINEAR], *prepared.peers]
    for ways in (*prepared.dense, *prepared.bfloat16):
        seconds = {one.name: seconds_once(one.call) for one in ways.values()}
        kept += [one for one in ways.values() if seconds[one.name] < SLOWER * min(seconds.values())]
    return list({one.name: one for one in kept}.values())


def _record(case: Case, prepared: Contest, samples: Mapping[str, Sequence[float]]) -> Record:
    median = {name: statistics.median(times) for name, times in samples.items()}
    on, ms, dense_ms = machine(), median[POLLARD], median[prepared.dense.whole[NN_LINEAR].name]
    best_ms, best = prepared.dense.best(median)
    bf16_ms, bf16 = prepared.bfloat16.best(median) if prepared.bfloat16.whole else (None, None)
    return Record(
        op=case.op,
        pattern=case.pattern,
        dtype=case.dtype,
        shape=list(case.shape),
        density=case.density,
        threads=case.threads,
        ms=ms,
        gflops=1e-6 * prepared.flops / ms,
        dense_ms=dense_ms,
        best_dense_ms=best_ms,
        best_dense=best,
        bf16_dense_ms=bf16_ms,
        bf16_dense=bf16,
        speedup=best_ms / ms,
        nn_linear_speedup=dense_ms / ms,
        bf16_speedup=None if bf16_ms is None else bf16_ms / ms,
        dense_wins=best_ms < ms,
        torch_sparse_ms=median.get("torch_sparse"),
        mkl_ms=median.get("mkl"),
        scipy_ms=median.get("scipy"),
        target=on["kernels"],
        rounds=len(samples[POLLARD]),
        network=list(case.network),
        optimizer=case.optimizer if case.op == "step" else None,
        machine=on,
        spread_ms={name: [min(times), max(times)] for name, times in samples.items()},
    )
