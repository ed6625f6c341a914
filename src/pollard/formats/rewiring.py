"""A topology that moves: which grains stay and which come, merged into new rows. The specification of the fast path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.errors import TopologyError
from pollard.formats.difference import Rows
from pollard.formats.indices import check_count, checked_positions

Flags = NDArray[np.bool_]
Positions = NDArray[np.int64]


def checked_flags(stays: Tensor, grains: int) -> Flags:
    """`stays` as a contiguous array; raises TopologyError unless it is bool `(grains,)` on the CPU."""
    if stays.dtype != torch.bool or stays.shape != (grains,) or not stays.is_cpu:
        raise TopologyError(
            f"stays of {stays.dtype} {tuple(stays.shape)} on {stays.device}",
            f"torch.bool ({grains},) on the CPU",
            "Say of each grain whether it stays.",
        )
    flags: Flags = stays.contiguous().numpy()
    return flags


def checked_change(grains: int, total: int, stays: Tensor, grown: Tensor) -> tuple[Flags, Positions]:
    """Which of `grains` stay and positions `grown` below `total`, as contiguous arrays.

    Raises TopologyError unless `stays` is bool `(grains,)`, and `grown` ascends strictly within its range.
    """
    return checked_flags(stays, grains), checked_positions(grown, total, name="grown").long().numpy()


def rewire(
    rows: Rows, width: int, stays: Flags, grown: Positions
) -> tuple[NDArray[np.int32], NDArray[np.integer[Any]], NDArray[np.int32]]:
    """Row pointers, columns and source of `rows` (columns below `width`) after a change that `checked_change` passed.

    Raises TopologyError where a position of `grown` also stays, or more grains result than int32 can count.

    >>> rows = Rows(np.array([0, 2, 3], np.int32), np.array([0, 2, 1], np.int32))
    >>> pointers, columns, source = rewire(rows, 3, np.array([False, True, False]), np.array([0, 5]))
    >>> pointers.tolist(), columns.tolist(), source.tolist()
    ([0, 2, 3], [0, 2, 2], [0, 1, -1])
    """
    groups = np.repeat(np.arange(len(rows.pointers) - 1), np.diff(rows.pointers))
    here = groups * width + rows.columns
    place = np.searchsorted(here, grown)
    back = here.take(place, mode="clip") == grown if len(here) else np.zeros(len(grown), np.bool_)
    check_apart(grown[back][stays[place[back]]])
    held = stays.copy()
    held[place[back]] = True
    kept, come = np.flatnonzero(held), grown[~back]
    check_count(len(kept) + len(come))
    came = np.zeros(len(kept) + len(come), np.bool_)
    came[np.searchsorted(here[kept], come) + np.arange(len(come))] = True
    columns, source = np.empty(len(came), rows.columns.dtype), np.full(len(came), -1, np.int32)
    columns[came], columns[~came] = come % max(width, 1), rows.columns[kept]
    source[~came] = kept
    counts = np.bincount(groups[kept], minlength=len(rows.pointers) - 1)
    counts += np.bincount(come // max(width, 1), minlength=len(counts))
    return np.append(0, counts.cumsum()).astype(np.int32), columns, source


def check_apart(both: Positions) -> None:
    """Raises TopologyError if there is any position, of those `both` staying and grown."""
    if len(both):
        raise TopologyError(
            f"position {int(both[0])} both stays and grows",
            "grown positions that do not stay",
            "Leave the grains that stay out of what may grow.",
        )
