"""Ascending positions in chunks: what is wider than an index never exists for all grains at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

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
