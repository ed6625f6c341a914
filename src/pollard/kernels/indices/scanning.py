"""Scores gone through for a ranking: those within two bounds, and which reach one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pollard.kernels.code.emit.scan import MAGNITUDE
from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target

Scores = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
Made = TypeVar("Made")

# Fewer scores are gone through sooner than a kernel is called.
FEW = 1 << 15
# Scores that numpy handles at once: few enough to stay in cache from one step to the next.
PART = 1 << 17


class Within(NamedTuple):
    """Scores `inside` two bounds, in order; how many are above the lower bound, and how many at or above the upper one."""

    inside: Scores
    past: int
    above: int


def within(scores: Scores, low: float, high: float) -> Within:
    """What of `scores` `(n,)`, none of them NaN, lies strictly between `low` and `high`, numbers of the same dtype.

    >>> within(np.array([3.0, 1.0, 2.0, 3.5]), 1.0, 3.5)
    Within(inside=array([3., 2.]), past=3, above=1)
    """
    made = _by_kernel(scores, partial(_within, scores, low, high))
    return within_slowly(scores, low, high) if made is None else made


def reaching(scores: Scores, bound: float, *, strictly: bool) -> Flags:
    """Which of `scores` `(n,)`, none of them NaN, are above `bound`, or, unless `strictly`, equal to it.

    >>> reaching(np.array([3.0, 1.0, 2.0]), 2.0, strictly=True)
    array([ True, False, False])
    """
    made = _by_kernel(scores, partial(_reaching, scores, bound, strictly))
    return reaching_slowly(scores, bound, strictly=strictly) if made is None else made


def within_slowly(scores: Scores, low: float, high: float) -> Within:
    """`within`, in numpy: its specification."""
    inside, past, above = [scores[:0]], 0, 0
    for start in range(0, scores.size, PART):
        part = scores[start : start + PART]
        over, under = part > low, part < high
        past += int(np.count_nonzero(over))
        above += part.size - int(np.count_nonzero(under))
        # take over a mask as index, which mispredicts on every change of mind
        inside.append(part.take(np.flatnonzero(np.logical_and(over, under, out=over))))
    return Within(np.concatenate(inside), past, above)


def reaching_slowly(scores: Scores, bound: float, *, strictly: bool) -> Flags:
    """`reaching`, in numpy: its specification."""
    flags: Flags = scores > bound if strictly else scores >= bound
    return flags


def _by_kernel(scores: Scores, fast: Callable[[Target], Made]) -> Made | None:
    if scores.dtype != np.float32 or not scores.flags.c_contiguous or not FEW <= scores.size < 1 << 31:
        return None
    return attempt(fast)


def _within(scores: Scores, low: float, high: float, target: Target) -> Within:
    threads = torch.get_num_threads()
    bounds = equal_runs(scores.size, threads)
    found, counts = np.empty(scores.size, np.float32), torch.zeros(threads, 3, dtype=torch.int32, device="cpu")
    Launch(
        KernelSpec("within", target.isa), threads, threads, scores=torch.from_numpy(scores), found=torch.from_numpy(found),
        counts=counts, bounds=bounds, PASSES=1, LOW=_integer(low, last=True), HIGH=_integer(high, last=False),
    )()  # fmt: skip
    inside, past, below = counts.t().tolist()
    parts = [found[first : first + count] for first, count in zip(bounds.tolist(), inside, strict=False)]
    return Within(np.concatenate(parts), sum(past), scores.size - sum(below))


def _reaching(scores: Scores, bound: float, strictly: bool, target: Target) -> Flags:
    threads, flags = torch.get_num_threads(), np.empty(scores.size, np.bool_)
    low = _integer(bound, last=True) if strictly else _integer(bound, last=False) - 1
    Launch(
        KernelSpec("above", target.isa), threads, threads, scores=torch.from_numpy(scores), flags=torch.from_numpy(flags),
        bounds=equal_runs(scores.size, threads), PASSES=1, LOW=low,
    )()  # fmt: skip
    return flags


def _integer(bound: float, *, last: bool) -> int:
    """The integer of `bound` that floats compare by; of the two zeros the first or the `last`."""
    if bound == 0.0:
        bound = 0.0 if last else -0.0
    bits = int(np.float32(bound).view(np.int32))
    return bits if bits >= 0 else bits ^ MAGNITUDE
