"""What kernels derive from a topology, made once each: tile pointers, cuts into chunks of equal work, prepared calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.formats.indices import index_dtype
from pollard.formats.topology import Topology
from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.once import one_at_a_time
from pollard.kernels.code.target import Target
from pollard.kernels.indices.turning import cut, even, turn
from pollard.kernels.products.waiting import refuse_capture, tensors_within, wait_for_stream

Indices = NDArray[np.integer[Any]]
Made = TypeVar("Made")
RUN = 1 << 16  # grains of which one sample's products are made at once: half a megabyte
CHUNK = 1 << 18  # grains handled at once, so that temporaries stay small beside the topology


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where each tile of `width` columns of grains begins in each row group: entry ``[t * stride + i]``; it ends `end` later."""

    pointers: Tensor
    tiles: int
    width: int
    stride: int
    end: int

    @property
    def bytes(self) -> int:
        """Bytes held beyond the topology's own."""
        return self.pointers.nbytes if self.stride else 0


@dataclass(frozen=True, slots=True)
class ByColumns:
    """A topology by columns of grains, in tiles of row groups: the grains of the first tile column by column, then the next.

    tiling: where each column begins in each tile. rows: `(grains,)`, the row group of each grain, ascending in a column of a
    tile, of the `index_dtype` of their number. permutation: int32 `(grains,)`, where each grain stands in the topology's own order.
    """

    tiling: Tiling
    rows: Tensor
    permutation: Tensor

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return self.tiling.bytes + self.rows.nbytes + self.permutation.nbytes

    def bounds(self, chunks: int, step: int = 1) -> Tensor:
        """Columns cut into `chunks` runs of about equal numbers of grains, each of whole steps: int32 `(chunks + 1,)`."""
        # The beginnings of a tile less its first, summed over tiles: what is kept in the columns before.
        begins = self.tiling.pointers[:-1].view(self.tiling.tiles, self.tiling.stride)
        before = (begins - begins[:, :1]).sum(0, dtype=torch.int32)
        return even(torch.cat((before, self.tiling.pointers[-1:])), chunks, step)


@dataclass(frozen=True, slots=True)
class Run:
    """Grains `first` to `last`, which are those of the row groups `filled`: `counts` of each, from `starts` of the run on."""

    first: int
    last: int
    filled: Indices | slice
    counts: Indices
    starts: Indices

    @property
    def bytes(self) -> int:
        """Bytes that it holds."""
        filled = 0 if isinstance(self.filled, slice) else self.filled.nbytes
        return filled + self.counts.nbytes + self.starts.nbytes

    def values(self, row: int, rows: int) -> slice:
        """Where the values of one row of each grain are."""
        return slice(self.first * rows + row, self.last * rows, rows)


class Calls:
    """Prepared calls: those of the latest batches, and one for each way to cut a batch, which are few; and what was chosen."""

    def __init__(self) -> None:
        self.recent: dict[Hashable, Any] = {}
        self.choices: dict[Hashable, Any] = {}
        self.prepared: dict[Hashable, Any] = {}


class _Derived:
    def __init__(self) -> None:
        self.tilings: dict[int, Tiling] = {}
        self.bounds: dict[tuple[int, int], Tensor] = {}
        self.runs: tuple[Run, ...] | None = None
        self.calls = Calls()
        self.by_columns: dict[int, ByColumns] = {}
        self.placed: dict[Hashable, Any] = {}


# Where a topology keeps what is derived from it. Not in a table of ours: prepared calls lead back to their topology, so a
# table would hold both for ever.
_PLACE = "_derived"


@one_at_a_time
def tiling(topology: Topology, width: int) -> Tiling:
    """The tiles of `width` columns of grains; as wide as the matrix, they are the row pointers themselves."""
    width = max(1, min(width, topology.width))
    known = _of(topology).tilings
    if width not in known:
        known[width] = _make(topology, width)
    return known[width]


@one_at_a_time
def by_columns(topology: Topology, width: int) -> ByColumns:
    """`topology` by columns of grains, in tiles of `width` row groups."""
    width = max(1, min(width, topology.groups))
    known = _of(topology).by_columns
    if width not in known:
        made = attempt(partial(_turned, topology, width)) or turned_slowly(topology, width)
        pointers, rows, permutation = made
        columns = topology.width
        known[width] = ByColumns(Tiling(pointers, -(-topology.groups // width), width, columns, 1), rows, permutation)
    return known[width]


def turned_slowly(topology: Topology, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `turn` makes, by sorting: its specification."""
    rows = torch.arange(topology.groups, dtype=torch.int32, device="cpu").repeat_interleave(
        topology.row_pointers.diff()
    )
    cells = rows.long() // width * topology.width + topology.columns
    pointers = torch.zeros(-(-topology.groups // width) * topology.width + 1, dtype=torch.int32, device="cpu")
    torch.cumsum(cells.bincount(minlength=len(pointers) - 1), 0, dtype=torch.int32, out=pointers[1:])
    permutation = cells.argsort(stable=True)
    return pointers, rows[permutation].to(index_dtype(topology.groups)), permutation.int()


def places_in_runs(topology: Topology, pad: int) -> Tensor:
    """Where kept weights of an `N:M` topology stand in their run of M, log2(M) bits each from the lowest on, uint8.

    Rows begin with a byte of their own; `pad` bytes follow the last. Kept with the topology.
    """
    return made_once(topology, ("places in runs", pad), lambda: _places_in_runs(topology, pad))


def _places_in_runs(topology: Topology, pad: int) -> Tensor:
    rows, m = topology.shape[0], topology.pattern.m
    width = (m - 1).bit_length()
    kept = topology.nnz // rows
    columns = topology.indices.columns.numpy().reshape(rows, kept)
    found = np.zeros(rows * -(-kept * width // 8) + pad, np.uint8)
    lines = found[: len(found) - pad].reshape(rows, -1)
    step = max(1, CHUNK // kept)
    for first in range(0, rows, step):
        places = (columns[first : first + step] % m).astype(np.uint8)
        bits = places[:, :, None] >> np.arange(width, dtype=np.uint8) & 1
        lines[first : first + step] = np.packbits(bits.reshape(len(places), -1), axis=1, bitorder="little")
    return torch.from_numpy(found)


def column_bits(topology: Topology, word: int) -> Tensor:
    """Which columns each row of single weights keeps, a bit each from the lowest on, uint8 `(rows, bytes)`: rows begin with a `word`. Kept with the topology."""
    return made_once(topology, ("column bits", word), lambda: _column_bits(topology, word))


def _column_bits(topology: Topology, word: int) -> Tensor:
    rows, width = topology.groups, -(-topology.width // word) * word
    found = torch.empty((rows, width // 8), dtype=torch.uint8, device="cpu")
    pointers, columns = topology.indices.row_pointers.numpy(), topology.indices.columns.numpy()
    step = max(1, CHUNK // width)
    for first in range(0, rows, step):
        begins = pointers[first : first + step + 1]
        kept = np.zeros((len(begins) - 1, width), np.bool_)
        kept[np.repeat(np.arange(len(kept)), np.diff(begins)), columns[begins[0] : begins[-1]]] = True
        found[first : first + step] = torch.from_numpy(np.packbits(kept, axis=1, bitorder="little"))
    return found


@one_at_a_time
def made_once(topology: Topology, key: Hashable, make: Callable[[], Made]) -> Made:
    """What `make` makes, kept with `topology` under `key`; raises InvalidInput where a CUDA graph would have to make it at each replay."""
    known = _of(topology).placed
    if key not in known:
        refuse_capture()
        known[key] = make()
    found: Made = known[key]
    return found


def calls(topology: Topology) -> Calls:
    """Prepared calls on `topology`, by what they are prepared for; they live as long as the topology."""
    return _of(topology).calls


@one_at_a_time
def bounds(topology: Topology, chunks: int, step: int = 1) -> Tensor:
    """Row groups cut into `chunks` runs of about equal numbers of grains, each of whole steps: int32 `(chunks + 1,)`."""
    known = _of(topology).bounds
    if (chunks, step) not in known:
        known[chunks, step] = even(topology.indices.row_pointers, chunks, step)
    return known[chunks, step]


@one_at_a_time
def runs(topology: Topology) -> tuple[Run, ...]:
    """Row groups that keep anything in runs of about `RUN` grains; whoever has more is a run of its own."""
    own = _of(topology)
    if own.runs is None:
        pointers = topology.indices.row_pointers.numpy().astype(np.int64)
        chunks = max(1, min(topology.grains // RUN, topology.groups))
        cuts = even(topology.indices.row_pointers, chunks).tolist()
        own.runs = tuple(_run(pointers, *pair) for pair in pairwise(cuts) if pointers[pair[0]] < pointers[pair[1]])
    return own.runs


def _run(pointers: NDArray[np.int64], first: int, last: int) -> Run:
    counts = np.diff(pointers[first : last + 1])
    here = np.flatnonzero(counts)
    starts = pointers[first:last][here] - pointers[first]
    # A slice, of which numpy copies nothing, wherever it says the same.
    filled = slice(first, last) if len(here) == last - first else here + first
    return Run(int(pointers[first]), int(pointers[last]), filled, counts[here], starts)


@one_at_a_time
def widths(topology: Topology, *, transposed: bool = False) -> set[int]:
    """The tile widths made so far, by rows or by columns."""
    return set(_tiles(topology, transposed))


@one_at_a_time
def forget(topology: Topology, unused: set[int], *, transposed: bool = False) -> None:
    """Drop tiles that were made only to be tried."""
    for width in unused:
        _tiles(topology, transposed).pop(width, None)


def _tiles(topology: Topology, transposed: bool) -> dict[int, Any]:
    own = _of(topology)
    return own.by_columns if transposed else own.tilings


@one_at_a_time
def let_go(topology: Topology) -> None:
    """Drop all that was derived from `topology`, its transpose too: nobody will multiply by it soon."""
    wait_for_stream(list(_of(topology).placed.values()))
    topology.__dict__.pop(_PLACE, None)
    if "_cut" in topology.__dict__:
        let_go(topology.vectors)
    topology.drop_derived()


@one_at_a_time
def derived_bytes(topology: Topology) -> int:
    """Bytes of everything derived from `topology` so far."""
    cut = topology.__dict__.get("_cut")
    return _bytes(_of(topology)) + (0 if cut is None else _bytes(_of(cut)))


def _bytes(own: _Derived) -> int:
    cuts = sum(cut.nbytes for cut in own.bounds.values()) + sum(run.bytes for run in own.runs or ())
    turned = sum(each.bytes for each in own.by_columns.values())
    return turned + sum(each.bytes for each in own.tilings.values()) + cuts + _placed_bytes(own.placed.values())


def _placed_bytes(placed: Iterable[Any]) -> int:
    # Some hold the same arrays; what holds more than arrays says how much.
    held: dict[int, int] = {}
    for each in placed:
        parts = [each] if hasattr(each, "nbytes") else tensors_within(each)
        held |= {id(part): part.nbytes for part in parts}
    return sum(held.values())


def _of(topology: Topology) -> _Derived:
    # In one step: two threads must not each have their own.
    found: _Derived = topology.__dict__.get(_PLACE) or topology.__dict__.setdefault(_PLACE, _Derived())
    return found


def _turned(topology: Topology, width: int, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    return turn(topology, width, partial(_borders, topology, target=target), target)


def _make(topology: Topology, width: int) -> Tiling:
    tiles = -(-topology.width // width)
    if tiles <= 1:
        return Tiling(topology.indices.row_pointers, 1, width, 0, 1)
    table = attempt(partial(_borders, topology, width))
    if table is None:
        table = _table(topology, width, tiles)
    return Tiling(table, tiles, width, topology.groups, topology.groups)


def _borders(topology: Topology, width: int, target: Target) -> Tensor:
    # Some of those of narrower tiles, where such are known, and no walk over the topology.
    for known in _of(topology).tilings.values():
        if known.stride and width % known.width == 0:
            narrow = known.pointers.view(-1, topology.groups)
            return torch.cat((narrow[: -1 : width // known.width], narrow[-1:])).view(-1)
    return cut(topology, width, target)


def _table(topology: Topology, width: int, tiles: int) -> Tensor:
    # What `cut` makes, in numpy.
    groups = topology.groups
    table = np.empty((tiles + 1, groups), np.int32)
    pointers, columns = topology.indices.row_pointers.numpy(), topology.indices.columns.numpy()
    table[0] = pointers[:-1]
    first = 0
    while first < groups:
        last = max(first + 1, int(np.searchsorted(pointers, pointers[first] + CHUNK, side="right")) - 1)
        last = min(last, groups)
        table[1:, first:last] = _ends(pointers[first : last + 1], columns, width, tiles)
        first = last
    return torch.from_numpy(table.reshape(-1))


def _ends(pointers: Indices, columns: Indices, width: int, tiles: int) -> Indices:
    rows = len(pointers) - 1
    row = np.repeat(np.arange(rows, dtype=np.int32), np.diff(pointers))
    cell = columns[pointers[0] : pointers[-1]] // np.int32(width) * np.int64(rows) + row
    counts = np.bincount(cell, minlength=tiles * rows).reshape(tiles, rows)
    ends: Indices = np.cumsum(counts, 0) + pointers[:-1]
    return ends
