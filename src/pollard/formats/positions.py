"""Ascending positions in chunks: what is wider than an index never exists for all grains at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pollard.formats.indices import index_dtype
from pollard.formats.sampling import Integers

# A few hundred thousand stay in cache and cost no memory.
_CHUNK = 1 << 18


def slices(positions: Integers) -> Iterator[Integers]:
    """`positions` as they are, some at a time."""
    for start in range(0, len(positions), _CHUNK):
        yield positions[start : start + _CHUNK]


def nonzero(flat: NDArray[np.bool_]) -> Iterator[Integers]:
    """Where `flat` is True; no chunk is empty."""
    for start in range(0, len(flat), _CHUNK):
        positions = np.flatnonzero(flat[start : start + _CHUNK])
        if len(positions):
            yield positions + start


def complement(dropped: Integers, total: int) -> Iterator[Integers]:
    """Chunks of the ascending integers of `range(total)` that are not in ascending `dropped`; none is empty."""
    for start in range(0, total, _CHUNK):
        stop = min(start + _CHUNK, total)
        kept = np.ones(stop - start, np.bool_)
        first, last = np.searchsorted(dropped, (start, stop))
        kept[dropped[first:last] - start] = False
        positions = np.flatnonzero(kept)
        if len(positions):
            yield positions + start


def rows_of(
    grid: tuple[int, int], count: int, chunks: Iterable[Integers]
) -> tuple[NDArray[np.int32], NDArray[np.integer[Any]]]:
    """Row pointers and columns of `count` strictly ascending positions on a `grid`, in chunks none of which is empty.

    Columns are of the dtype that a topology holds.

    >>> pointers, columns = rows_of((2, 3), 3, [np.array([0, 2]), np.array([4])])
    >>> pointers.tolist(), columns.tolist()
    ([0, 2, 3], [0, 2, 1])
    """
    height, width = grid
    columns = torch.empty(count, dtype=index_dtype(width), device="cpu").numpy()
    pointers = np.zeros(height + 1, np.int32)
    done = 0
    for positions in chunks:
        groups = positions // width
        place = columns[done : done + len(positions)]
        np.subtract(positions, groups * width, out=place, casting="unsafe")
        ends = np.append(np.flatnonzero(groups[1:] != groups[:-1]), len(groups) - 1)
        pointers[groups[ends] + 1] += np.diff(ends, prepend=-1).astype(np.int32)
        done += len(positions)
    np.cumsum(pointers, out=pointers)
    return pointers, columns
