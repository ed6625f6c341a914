"""What changes from one topology to another, in one linear merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 1 << 18
# Marks of a grain in the merge: a sum of both says that both hold it.
_HERE, _THERE, _BOTH = 1, 2, 3


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """What changes from one topology (here) to another (there), as ascending int64 indices of grains.

    kept_here, kept_there: the grains both hold, at their places in each; the two have equal length.
    dropped: grains only here, at their places here.
    grown: grains only there, at their places there.
    """

    kept_here: Tensor
    kept_there: Tensor
    dropped: Tensor
    grown: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Validated CSR arrays of one side: `pointers` (groups + 1,), `columns` (grains,), each row ascending."""

    pointers: NDArray[np.int32]
    columns: NDArray[np.integer[Any]]


def compare(here: Rows, there: Rows, width: int) -> Difference:
    """The Difference of two sets of rows over the same groups, all columns below `width`.

    >>> rows = [Rows(np.array([0, 2], np.int32), np.array(columns, np.int32)) for columns in ([0, 3], [3, 4])]
    >>> change = compare(*rows, width=5)
    >>> change.kept_here.tolist(), change.kept_there.tolist(), change.dropped.tolist(), change.grown.tolist()
    ([1], [0], [0], [1])
    """
    empty = np.empty(0, np.int64)
    parts: tuple[list[NDArray[np.int64]], ...] = ([empty], [empty], [empty], [empty])
    seen_here = seen_there = 0
    marks = _merge(here, there, width)
    for start in range(0, len(marks), _CHUNK):
        piece = marks[start : start + _CHUNK]
        # take over nonzero: boolean indexing mispredicts on every change of mind
        ours, theirs = (piece.take(np.flatnonzero(piece != absent)) for absent in (_THERE, _HERE))
        parts[0].append(np.flatnonzero(ours == _BOTH) + seen_here)
        parts[1].append(np.flatnonzero(theirs == _BOTH) + seen_there)
        parts[2].append(np.flatnonzero(ours == _HERE) + seen_here)
        parts[3].append(np.flatnonzero(theirs == _THERE) + seen_there)
        seen_here += len(ours)
        seen_there += len(theirs)
    return Difference(*(torch.from_numpy(np.concatenate(part)) for part in parts))


def _merge(here: Rows, there: Rows, width: int) -> NDArray[np.int8]:
    """For every grain that either side holds, in order: whether here, there or both do."""
    import scipy.sparse  # a tenth of a second that users whose topologies never move should not pay

    ours, theirs = (
        scipy.sparse.csr_array(
            (np.full(len(rows.columns), mark, np.int8), rows.columns, rows.pointers), (len(rows.pointers) - 1, width)
        )
        for rows, mark in ((here, _HERE), (there, _THERE))
    )
    marks: NDArray[np.int8] = (ours + theirs).data
    return marks
