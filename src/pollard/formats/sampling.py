"""Exact samples without replacement out of ranges far larger than memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pollard.errors import InvalidInput
from pollard.formats.indices import checked_positions

_SMALL = 1 << 16
# Up to this total, 31 random bits a draw are enough to waste few of them, and half as many bytes are moved.
_NARROW = 1 << 28
_CHUNK = 1 << 16
_QUICK = 1 << 20

Integers = NDArray[np.signedinteger[Any]]
# Makes numbers of `range(total)` distinct and ascending, and may spoil them.
Settle = Callable[[Integers, int], Integers]


def distinct(numbers: Integers, total: int) -> Integers:
    """The distinct ones of `numbers`, all in `range(total)`, ascending; `numbers` is spoiled.

    >>> distinct(np.array([5, 0, 5, 3]), 6).tolist()
    [0, 3, 5]
    """
    del total
    numbers = _ascending(numbers)
    fresh = np.ones(len(numbers), np.bool_)
    np.not_equal(numbers[1:], numbers[:-1], out=fresh[1:])
    return numbers[fresh]


def sample(total: int, count: int, generator: torch.Generator | None = None, settle: Settle = distinct) -> Integers:
    """`count` distinct integers of `range(total)`, ascending `(count,)`, every set of that size equally likely.

    Memory is proportional to `count`, never to `total` (up to `2**62`), as long as `count <= total / 2`: ask for the
    complement above that. The same generator state gives the same sample. Draws with replacement until the expected
    number of distinct integers, `total * (1 - exp(-draws / total))`, is safely past `count`, then drops a random
    surplus: no step prefers one integer to another, so neither does the result. `settle` may know a faster way than
    `distinct` to the same integers.

    >>> sample(10**18, 3, torch.Generator().manual_seed(0)).shape
    (3,)
    >>> sample(4, 4).tolist()
    [0, 1, 2, 3]
    """
    if total <= _SMALL:
        chosen: Integers = (
            torch.randperm(total, generator=generator, dtype=torch.int64, device="cpu")[:count].sort().values.numpy()
        )
        return chosen
    drawn = _distinct(total, count, generator, settle)
    while len(drawn) < count:
        drawn = _distinct(total, count, generator, settle)
    surplus = len(drawn) - count
    return np.delete(drawn, sample(len(drawn), surplus, generator, settle)) if surplus else drawn


def sample_runs(runs: int, n: int, m: int, generator: torch.Generator | None = None) -> Iterator[Integers]:
    """`n` distinct integers of every `m` in `range(runs * m)`, ascending, so many at a time; every choice equally likely.

    >>> [part.tolist() for part in sample_runs(2, 3, 4, torch.Generator().manual_seed(0))]
    [[1, 2, 3, 4, 6, 7]]
    """
    step = max(1, _CHUNK // m)
    for first in range(0, runs, step):
        count = min(step, runs - first)
        keys = torch.rand(count, m, dtype=torch.float64, device="cpu", generator=generator)
        chosen = keys.argsort(1)[:, :n].sort(1).values.numpy()
        yield (chosen + (np.arange(first, first + count) * m)[:, None]).reshape(-1)


def sample_absent(
    total: int, present: NDArray[np.int64], count: int, generator: torch.Generator | None = None
) -> NDArray[np.int64]:
    """`count` distinct integers of `range(total)` that are not in `present`, ascending int64 `(count,)`.

    present: int64 `(p,)`, strictly ascending. Every set of that size is equally likely, and the same generator state
    gives the same one. Memory is proportional to what is asked for and what is present, never to `total` (up to
    `2**62`). Raises TopologyError on a `present` out of order or range, InvalidInput where fewer are absent.

    >>> sample_absent(6, np.array([0, 2, 3]), 3).tolist()
    [1, 4, 5]
    """
    taken = checked_positions(torch.from_numpy(present), total, name="present").numpy()
    ranks = sample_ranks(total - len(taken), count, generator)
    # The rank of an absent integer is how many absent ones are below it: all below it, but for those present.
    positions: NDArray[np.int64] = ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")
    return positions


def sample_ranks(
    absent: int, count: int, generator: torch.Generator | None = None, settle: Settle = distinct
) -> NDArray[np.int64]:
    """`count` distinct integers of `range(absent)`, ascending, in memory proportional to `count`, however large.

    settle: as of `sample`.
    Raises InvalidInput where `count` is none of `0 ... absent`.
    """
    if not 0 <= count <= absent:
        raise InvalidInput(
            f"a sample of {count} out of {absent} absent grains", f"a count in [0, {absent}]", "Ask for fewer."
        )
    if 2 * count <= absent:
        return sample(absent, count, generator, settle).astype(np.int64, copy=False)
    return np.delete(np.arange(absent), sample(absent, absent - count, generator, settle))


def _distinct(total: int, count: int, generator: torch.Generator | None, settle: Settle) -> Integers:
    dtype, limit = (torch.int32, 1 << 31) if total <= _NARROW else (torch.int64, 1 << 63)
    # Draws past the largest multiple of total go, so that every remainder is equally likely.
    bound = limit // total * total
    wanted = count + 6.0 * math.sqrt(count) + 6.0  # six standard deviations: a second try is a one in a billion event
    draws = math.ceil(-total * math.log1p(-wanted / total) * (limit / bound))
    numbers: Integers = torch.empty(draws, dtype=dtype, device="cpu").random_(generator=generator).numpy()
    numbers = numbers[numbers < bound]
    _reduce(numbers, total)
    return settle(numbers, total)


def _reduce(numbers: Integers, total: int) -> None:
    # The remainder by way of the quotient: numpy divides by a constant several times faster than it takes remainders.
    quotients = np.empty(min(len(numbers), _CHUNK), numbers.dtype)
    for start in range(0, len(numbers), _CHUNK):
        part = numbers[start : start + _CHUNK]
        whole = np.floor_divide(part, total, out=quotients[: len(part)])
        np.multiply(whole, total, out=whole)
        np.subtract(part, whole, out=part)


def _ascending(numbers: Integers) -> Integers:
    # Torch sorts integers by radix on all its threads, at three times the memory; numpy in place, much slower.
    if len(numbers) <= _QUICK:
        return torch.from_numpy(numbers).sort().values.numpy()
    numbers.sort()
    return numbers
