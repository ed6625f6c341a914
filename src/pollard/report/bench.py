"""Timings that can be believed: every contender in one process, interleaved round by round, verified before it is timed.

A record says how long a sparse operation took, how long the dense one took beside it, and what the peers took that happen to
be installed. Medians are the figures, minima and maxima are kept, and a case that dense wins is marked, not dropped.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise, product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from pollard.errors import InvalidInput, KernelError
from pollard.kernels.code import target
from pollard.report.contenders import Case, Contender, contest

SAMPLE_SECONDS = 2e-3
TRIES = 5  # calls, where they are short, that say how long one takes
ROUNDS = 15


@dataclass(frozen=True)
class Record:
    """One timed case: milliseconds are medians over the rounds, `spread_ms` is [fastest, slowest] for each contender.

    `gflops` counts the kept weights only, `speedup` is dense_ms / ms, and `dense_wins` marks a case that is not worth it. A
    contender that is not installed, or has no such operation, is None.
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
    speedup: float
    dense_wins: bool
    torch_sparse_ms: float | None
    mkl_ms: float | None
    scipy_ms: float | None
    target: str
    rounds: int
    network: list[int] = field(default_factory=list)
    optimizer: str | None = None
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
) -> list[Case]:
    """Every combination, grouped by shape so that neighbouring rows of the table can be compared.

    >>> grid = cases(["forward"], [(64, 32, 8)], patterns=["v4"], densities=[0.1, 0.05])
    >>> [case.density for case in grid]
    [0.1, 0.05]
    """
    grid = product(threads, shapes, ops, patterns, densities)
    return [Case(op, pattern, shape, density, count, (), optimizer) for count, shape, op, pattern, density in grid]


def network_cases(
    widths: Sequence[int],
    batch: int,
    *,
    patterns: Sequence[str],
    densities: Sequence[float],
    threads: Sequence[int] = (1,),
    optimizer: str = "adam",
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
    grid = product(threads, patterns, densities)
    return [Case("step", pattern, shape, density, count, network, optimizer) for count, pattern, density in grid]


def measure(case: Case, *, rounds: int = ROUNDS, peers: bool = True, seed: int = 0) -> Record:
    """Times one case against its dense twin and, where `peers`, against every installed library that has the operation.

    Raises KernelError when a contender's result differs from the dense one: a wrong result has no speed.
    """
    with _threads(case.threads):
        prepared = contest(case, peers=peers, seed=seed)
        verify(case, prepared.contenders)
        samples = interleaved({one.name: one.call for one in prepared.contenders}, rounds)
    return _record(case, samples, prepared.flops)


def verify(case: Case, contenders: Sequence[Contender]) -> None:
    """Runs every contender once and holds its result against the dense one; this is also the first warm-up.

    Raises KernelError when one is off by more than rounding explains.
    """
    dense = next(one for one in contenders if one.name == "dense")
    expected = dense.comparable(dense.call())
    allowed = _allowed(case)
    for one in contenders:
        got = one.comparable(one.call()) if one is not dense else expected
        for name, want in expected.items():
            error = _error(case, got[name], want)
            if not error <= allowed:
                raise KernelError(
                    f"{one.name}: {name} of {case} off by {error:.1e} of its size",
                    f"at most {allowed:.1e}",
                    "Run `pollard doctor`; POLLARD_TARGET=reference works around a faulty kernel.",
                )


def _allowed(case: Case) -> float:
    """Relative error that rounding explains: for a float32 sum of n terms a few eps * sqrt(n) of the largest result.

    In a network a ReLU whose input is one rounding error from zero may open for one contender only, and then a sample's
    whole share of a gradient differs: a network is held to 1 % of the norm instead.
    """
    return 1e-2 if case.network else 8 * torch.finfo(torch.float32).eps * float(max(case.shape)) ** 0.5


def _error(case: Case, got: Tensor, want: Tensor) -> float:
    order = 2 if case.network else torch.inf
    smallest = torch.finfo(torch.float32).tiny
    return float((got - want).flatten().norm(order) / want.flatten().norm(order).clamp_min(smallest))


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a call, `rounds` samples for each of `calls`, taken in turns so that a noisy moment hits all alike.

    Short calls are repeated until a sample lasts 2 ms. Each sample follows one call of its own that is not timed: what is
    measured is a product in use, not the caches its neighbour left behind. The order is drawn anew in each round, the same
    in every process. The garbage collector waits.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, draw = list(calls), random.Random(0)  # noqa: S311  an order of measurement is no secret
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            draw.shuffle(order)
            for name in order:
                calls[name]()
                samples[name].append(_sample(calls[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return samples


def _repeats(call: Callable[[], object]) -> int:
    call()
    # The fastest of some: one that the machine interrupted would make every sample too short.
    once, spent = math.inf, 0.0
    for _ in range(TRIES):
        seconds = _sample(call, 1) / 1e3
        once, spent = min(once, seconds), spent + seconds
        if spent > SAMPLE_SECONDS:
            break
    return max(1, round(SAMPLE_SECONDS / max(once, 1e-9)))


def _sample(call: Callable[[], object], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats * 1e3


def _record(case: Case, samples: Mapping[str, Sequence[float]], flops: int) -> Record:
    median = {name: statistics.median(times) for name, times in samples.items()}
    isa = target.current()
    return Record(
        op=case.op,
        pattern=case.pattern,
        dtype="float32",
        shape=list(case.shape),
        density=case.density,
        threads=case.threads,
        ms=median["pollard"],
        gflops=1e-6 * flops / median["pollard"],
        dense_ms=median["dense"],
        speedup=median["dense"] / median["pollard"],
        dense_wins=median["dense"] < median["pollard"],
        torch_sparse_ms=median.get("torch_sparse"),
        mkl_ms=median.get("mkl"),
        scipy_ms=median.get("scipy"),
        target=isa.isa if isa else "reference",
        rounds=len(samples["pollard"]),
        network=list(case.network),
        optimizer=case.optimizer if case.op == "step" else None,
        spread_ms={name: [min(times), max(times)] for name, times in samples.items()},
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
