"""A topology that moves: which grains stay and which come, merged into new rows. The specification of the fast path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pollard.errors import TopologyError
from pollard.formats.difference import Rows
from pollard.formats.indices import check_count, checked_positions

Positions = NDArray[np.int64]


def checked_change(grains: int, total: int, kept: Tensor, grown: Tensor) -> tuple[Positions, Positions]:
    """Indices `kept` below `grains` and positions `grown` below `total`, as contiguous int64 arrays.

    Raises TopologyError unless both ascend strictly within their range, and fit into one topology.
    """
    stay, come = (
        checked_positions(array, limit, name=name).long().numpy()
        for name, array, limit in (("kept", kept, grains), ("grown", grown, total))
    )
    check_count(len(stay) + len(come))
    return stay, come


def rewire(
    rows: Rows, width: int, kept: Positions, grown: Positions
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Row pointers, columns and source of `rows` (columns below `width`) after a change that `checked_change` passed.

    Raises TopologyError where a position of `grown` is among the kept.

    >>> rows = Rows(np.array([0, 2, 3], np.int32), np.array([0, 2, 1], np.int32))
    >>> pointers, columns, source = rewire(rows, 3, np.array([1, 2]), np.array([0, 5]))
    >>> pointers.tolist(), columns.tolist(), source.tolist()
    ([0, 2, 4], [0, 2, 1, 2], [-1, 1, 2, -1])
    """
    groups = np.searchsorted(rows.pointers, kept, side="right") - 1
    stay = groups * width + rows.columns[kept]
    below = np.searchsorted(stay, grown)
    check_apart(grown[stay.take(below, mode="clip") == grown] if len(stay) else stay)
    came = np.zeros(len(kept) + len(grown), np.bool_)
    came[below + np.arange(len(grown))] = True
    columns, source = np.empty(len(came), np.int32), np.full(len(came), -1, np.int32)
    columns[came], columns[~came] = grown % max(width, 1), rows.columns[kept]
    source[~came] = kept
    counts = np.bincount(groups, minlength=len(rows.pointers) - 1)
    counts += np.bincount(grown // max(width, 1), minlength=len(counts))
    return np.append(0, counts.cumsum()).astype(np.int32), columns, source


def check_apart(both: Positions) -> None:
    """Raises TopologyError if there is any position, of those `both` kept and grown."""
    if len(both):
        raise TopologyError(
            f"position {int(both[0])} both kept and grown",
            "grown positions that are not kept",
            "Leave the kept grains out of what may grow.",
        )
