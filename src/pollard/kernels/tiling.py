"""What kernels derive from a topology, made once each: tile pointers, and cuts into chunks of equal work."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.emit.tiles import AHEAD

CHUNK = 1 << 20  # grains handled at once, so that temporaries stay small beside the topology


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where each tile of `width` columns begins in each row group: entry ``[t * stride + i]``; it ends `end` later."""

    pointers: Tensor
    tiles: int
    width: int
    stride: int
    end: int

    @property
    def bytes(self) -> int:
        """Bytes held beyond the topology's own."""
        return self.pointers.nbytes if self.stride else 0


class _Derived:
    def __init__(self) -> None:
        self.tilings: dict[int, Tiling] = {}
        self.bounds: dict[int, Tensor] = {}


_derived: WeakKeyDictionary[Topology, _Derived] = WeakKeyDictionary()


def tiling(topology: Topology, width: int) -> Tiling:
    """The tiles of `width` columns; as wide as the matrix, they are the row pointers themselves."""
    width = max(1, min(width, topology.shape[1]))
    known = _of(topology).tilings
    if width not in known:
        known[width] = _make(topology, width)
    return known[width]


def bounds(topology: Topology, chunks: int) -> Tensor:
    """Row groups cut into `chunks` runs of about equal numbers of grains: int32 `(chunks + 1,)`."""
    known = _of(topology).bounds
    if chunks not in known:
        pointers = topology.row_pointers.numpy()
        cuts = np.searchsorted(pointers, [topology.grains * i // chunks for i in range(chunks + 1)])
        cuts[0], cuts[-1] = 0, topology.groups
        known[chunks] = torch.from_numpy(cuts.astype(np.int32))
    return known[chunks]


def widths(topology: Topology) -> set[int]:
    """The tile widths made so far."""
    return set(_of(topology).tilings)


def forget(topology: Topology, unused: set[int]) -> None:
    """Drop tilings that were made only to be tried."""
    for width in unused:
        del _of(topology).tilings[width]


def derived_bytes(topology: Topology) -> int:
    """Bytes of everything derived from `topology` so far."""
    own = _of(topology)
    return sum(each.bytes for each in own.tilings.values()) + sum(cut.nbytes for cut in own.bounds.values())


def _of(topology: Topology) -> _Derived:
    found = _derived.get(topology)
    if found is None:
        found = _derived[topology] = _Derived()
    return found


def _make(topology: Topology, width: int) -> Tiling:
    tiles = -(-topology.shape[1] // width)
    if tiles <= 1:
        return Tiling(topology.row_pointers, 1, width, 0, 1)
    groups = topology.groups
    # Kernels ask for the grains of later row groups ahead of time and may read some entries beyond the table.
    flat = np.empty((tiles + 1) * groups + AHEAD, np.int32)
    flat[(tiles + 1) * groups :] = topology.grains
    table = flat[: (tiles + 1) * groups].reshape(tiles + 1, groups)
    pointers, columns = topology.row_pointers.numpy(), topology.columns.numpy()
    table[0] = pointers[:-1]
    first = 0
    while first < groups:
        last = max(first + 1, int(np.searchsorted(pointers, pointers[first] + CHUNK, side="right")) - 1)
        last = min(last, groups)
        table[1:, first:last] = _ends(pointers[first : last + 1], columns, width, tiles)
        first = last
    return Tiling(torch.from_numpy(flat), tiles, width, groups, groups)


def _ends(pointers: np.ndarray, columns: np.ndarray, width: int, tiles: int) -> np.ndarray:
    rows = len(pointers) - 1
    row = np.repeat(np.arange(rows, dtype=np.int32), np.diff(pointers))
    cell = columns[pointers[0] : pointers[-1]] // np.int32(width) * np.int64(rows) + row
    counts = np.bincount(cell, minlength=tiles * rows).reshape(tiles, rows)
    return np.cumsum(counts, 0) + pointers[:-1]
