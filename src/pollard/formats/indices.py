"""The checks between arrays of unknown origin and kernels that follow them blindly; each runs in bounded memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.arguments import require_density
from pollard.errors import InvalidInput, PatternError, TopologyError
from pollard.formats.pattern import Pattern

LIMIT = 2**31 - 1
_CHUNK = 1 << 18


class Indices(NamedTuple):
    """The arrays of a topology as it holds them, contiguous.

    row_pointers: int32 `(groups + 1,)`, where each row group begins. columns: `(grains,)`, of the `index_dtype` of the width.
    """

    row_pointers: Tensor
    columns: Tensor

    @property
    def itemsize(self) -> int:
        """Bytes of a column."""
        return self.columns.itemsize

    def handed(self) -> Indices:
        """The same memory in dtypes that all of torch knows: of uint16, which it cannot unpickle, the bits as int16."""
        narrow = self.columns.dtype is torch.uint16
        return Indices(self.row_pointers, self.columns.view(torch.int16) if narrow else self.columns)


def index_dtype(count: int) -> torch.dtype:
    """That of an index below `count`: uint16 where it fits, int32 elsewhere.

    >>> index_dtype(65536), index_dtype(65537)
    (torch.uint16, torch.int32)
    """
    return torch.uint16 if count <= 1 << 16 else torch.int32


def own(array: Tensor) -> Tensor:
    """A copy of an array of a dtype that is held; any other is refused, or converted later, which copies."""
    return array.detach().clone() if getattr(array, "dtype", None) in (torch.int32, torch.uint16) else array


def signature(indices: Indices, frame: str) -> Tensor:
    """64 bits that depend on each index and its place, and on `frame`: 8 whole numbers below 256, float32."""
    found = crc32(frame.encode())
    for array in indices:
        numbers = array.numpy()
        for start in range(0, len(numbers), len(_factors())):
            part = numbers[start : start + len(_factors())].astype(np.int32, copy=False)
            # Products wrap around: what is odd loses nothing of what it multiplies.
            found = (found + int(np.dot(part, _factors()[: len(part)]))) * _STEP % 2**64
        found = (found + len(numbers)) * _STEP % 2**64
    return torch.tensor(list((found ^ found >> 32).to_bytes(8)), dtype=torch.float32, device="cpu")


_STEP = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: odd, and its bits look like any


@cache
def _factors() -> NDArray[np.int32]:
    numbers = np.random.Generator(np.random.PCG64(0)).integers(2**32, size=1 << 16, dtype=np.uint32)
    return (numbers | 1).view(np.int32)


def checked_frame(shape: tuple[int, int], pattern: str | Pattern) -> tuple[tuple[int, int], Pattern, tuple[int, int]]:
    """Shape as two ints, pattern as a Pattern, and the grid of its grains; raises TopologyError, PatternError."""
    try:
        out_features, in_features = (operator.index(size) for size in shape)
    except (TypeError, ValueError):
        raise TopologyError(f"shape {shape!r}", "two integers (out, in)", "Pass the shape of a weight.") from None
    if not (0 <= out_features <= LIMIT and 0 <= in_features <= LIMIT):
        raise TopologyError(
            f"shape {(out_features, in_features)}",
            f"sizes from 0 to {LIMIT}",
            "Indices are int32: split larger layers.",
        )
    pattern = Pattern.parse(pattern)
    return (out_features, in_features), pattern, pattern.grid((out_features, in_features))


def check_density(density: float, pattern: Pattern | None = None) -> None:
    """Raises InvalidInput unless `density` is in (0, 1], PatternError where it is not what `pattern` keeps in any case."""
    require_density(density)
    kept = None if pattern is None else pattern.density
    if kept is not None and not math.isclose(density, kept, rel_tol=1e-6):
        raise PatternError(
            f"density {density:g} with pattern {pattern}",
            f"{kept:g}, what it keeps of every layer",
            "Ask for that density, or choose another pattern.",
        )


def check_count(grains: int) -> None:
    """Raises TopologyError where int32 cannot count `grains`."""
    if grains > LIMIT:
        raise TopologyError(
            f"{grains} grains", f"at most {LIMIT}", "Keep fewer, choose a coarser pattern, or split the layer."
        )


def check_mask(mask: object) -> None:
    """Raises InvalidInput unless `mask` is a bool matrix on the CPU."""
    found, fix = type(mask).__name__, "Compare something to a threshold, as in weight != 0."
    if isinstance(mask, Tensor):
        found = f"{mask.dtype} {tuple(mask.shape)} on {mask.device}"
        if mask.dtype is torch.bool and mask.layout is torch.strided and len(mask.shape) == len(("out", "in")):
            if mask.device.type == "cpu":
                return
            fix = "Call mask.cpu() first."
    raise InvalidInput(f"a mask of {found}", "a bool tensor (out, in) on the CPU, True = keep", fix)


def checked_pointers(pointers: Tensor, groups: int) -> Tensor:
    """Row pointers `(groups + 1,)` as contiguous int32; raises TopologyError unless they start at 0 and never fall."""
    _check_array("row_pointers", pointers)
    if len(pointers) != groups + 1:
        raise TopologyError(
            f"{len(pointers)} row pointers",
            f"{groups + 1}, one more than row groups",
            "Check the shape and the pattern.",
        )
    pointers = _narrow("row_pointers", pointers, LIMIT)
    if int(pointers[0]) != 0:
        raise TopologyError(
            f"first row pointer {int(pointers[0])}", "0", "Row pointers count grains from the first row."
        )
    for start, stop in _pairs(groups + 1):
        if bool((pointers[start + 1 : stop + 1] < pointers[start:stop]).any()):
            raise TopologyError("row pointers that fall", "row pointers that never fall", "Accumulate the row counts.")
    return pointers


def checked_columns(columns: Tensor, pointers: Tensor, width: int) -> Tensor:
    """Columns `(grains,)`, contiguous, of the dtype that is held; raises TopologyError unless below `width` and ascending in
    each row.
    """
    _check_array("columns", columns, torch.uint16)
    check_count(len(columns))
    if int(pointers[-1]) != len(columns):
        raise TopologyError(
            f"last row pointer {int(pointers[-1])}",
            f"{len(columns)}, the number of columns",
            "The arrays do not match.",
        )
    columns = _narrow("columns", columns, width - 1, index_dtype(width))
    array = columns.numpy()  # which can compare uint16
    for start, stop in _pairs(len(columns)):
        rises = array[start:stop] < array[start + 1 : stop + 1]
        falls = torch.from_numpy(np.flatnonzero(~rises)).add_(start + 1).int()
        # Wherever the column does not rise, a new row must begin.
        starts = pointers[torch.searchsorted(pointers, falls)]
        if not torch.equal(starts, falls):
            place = int(falls[(starts != falls).nonzero()[0, 0]])
            raise TopologyError(
                f"column {int(columns[place])} after {int(columns[place - 1])} at grain {place}",
                "columns strictly ascending within a row",
                "Sort each row's columns and merge duplicates.",
            )
    return columns


def checked_positions(positions: Tensor, total: int, *, name: str = "positions") -> Tensor:
    """Flat positions as a contiguous array; raises TopologyError unless strictly ascending and below `total`."""
    _check_array(name, positions)
    positions = positions.detach().contiguous()
    check_count(len(positions))
    array = positions.numpy()  # compares several times faster than torch does
    for start, stop in _pairs(len(array)):
        if (array[start + 1 : stop + 1] <= array[start:stop]).any():
            raise TopologyError(f"{name} out of order or repeated", f"strictly ascending {name}", "Sort them first.")
    if len(positions) and (int(positions[0]) < 0 or int(positions[-1]) >= total):
        raise TopologyError(
            f"{name} from {int(positions[0])} to {int(positions[-1])}",
            f"{name} from 0 to {total - 1}",
            "A position is group * width + column, an index counts grains.",
        )
    return positions


def check_runs(pointers: Tensor, columns: Tensor, width: int, pattern: Pattern) -> None:
    """Raises PatternError where `pattern` is N:M, and `columns` does not hold exactly n of every m of each row."""
    if not pattern.m:
        return
    rows, runs = len(pointers) - 1, width // pattern.m
    wanted = f"exactly {pattern.n} of every {pattern.m} weights of a row, for pattern {pattern}"
    fix = "Choose what to keep with pollard.prune(model, ..., pattern=), or keep an unstructured topology."
    if len(columns) != rows * runs * pattern.n or bool((pointers.diff() != runs * pattern.n).any()):
        raise PatternError(f"{len(columns)} weights kept of {rows} rows of {width}", wanted, fix)
    step = max(1, _CHUNK // pattern.n)
    for start in range(0, rows * runs, step):
        part = columns[start * pattern.n : (start + step) * pattern.n].int().view(-1, pattern.n)
        own = torch.arange(start, start + len(part), dtype=torch.int64, device="cpu") % runs
        if bool((part // pattern.m != own[:, None]).any()):
            raise PatternError("more weights kept of some runs than of others", wanted, fix)


def grains_of(
    mask: Tensor, pattern: str | Pattern, *, partial: bool
) -> tuple[tuple[int, int], Pattern, NDArray[np.bool_]]:
    """Shape and pattern of a bool `mask` (out, in), and which grains it keeps, flat; partial: some weights of one are enough.

    Raises InvalidInput on another mask, PatternError where a part of a grain is kept, or other than n of every m.
    """
    check_mask(mask)
    shape, pattern, (groups, width) = checked_frame((mask.shape[0], mask.shape[1]), pattern)
    grains: NDArray[np.bool_] = mask.detach().numpy()
    if pattern.m:
        grains = _runs_of(grains, pattern, partial=partial)
    elif pattern.size > 1:
        split = grains.reshape(groups, pattern.rows, width, pattern.columns)
        grains = np.logical_or.reduce(split, (1, 3))
        if not partial and not np.array_equal(grains, np.logical_and.reduce(split, (1, 3))):
            raise PatternError(
                "a mask that keeps a part of a grain",
                f"every {pattern.rows} x {pattern.columns} weights kept or dropped as one, for pattern {pattern}",
                "Use Topology.covering to keep every grain that holds a kept weight.",
            )
    return shape, pattern, np.ascontiguousarray(grains).reshape(-1)


def _runs_of(mask: NDArray[np.bool_], pattern: Pattern, *, partial: bool) -> NDArray[np.bool_]:
    runs = mask.reshape(-1, pattern.m)
    kept = runs.sum(1)
    if (kept > pattern.n).any() or (not partial and (kept < pattern.n).any()):
        raise PatternError(
            f"a mask that keeps {int(kept.min())} to {int(kept.max())} of every {pattern.m} weights",
            f"exactly {pattern.n}, for pattern {pattern}",
            "Topology.covering fills up where fewer are kept; where more are, choose again with pollard.prune.",
        )
    missing = pattern.n - kept
    filled: NDArray[np.bool_] = runs | (~runs & ((~runs).cumsum(1) <= missing[:, None]))
    return filled


def _check_array(name: str, array: object, *others: torch.dtype) -> None:
    if not isinstance(array, Tensor):
        raise TopologyError(f"{name} of type {type(array).__name__}", "a tensor", "Convert it with torch.as_tensor.")
    if array.device.type != "cpu":
        raise InvalidInput(f"{name} on {array.device}", f"{name} on the CPU", f"Call {name}.cpu() first.")
    if array.dtype not in (torch.int32, torch.int64, *others) or array.layout != torch.strided or array.dim() != 1:
        raise TopologyError(
            f"{name} of {array.dtype} {tuple(array.shape)}", "a 1-D int32 or int64 tensor", f"Convert {name} first."
        )


def _narrow(name: str, array: Tensor, limit: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """`array`, contiguous and of `dtype`, once every entry is known to lie in `[0, limit]`."""
    array = array.detach()
    if len(array):
        low, high = int(array.numpy().min()), int(array.numpy().max())
        if low < 0 or high > limit:
            raise TopologyError(
                f"{name} from {low} to {high}", f"{name} from 0 to {limit}", "The indices belong to another shape."
            )
    return array.to(dtype).contiguous()


def _pairs(length: int) -> Iterator[tuple[int, int]]:
    """Ranges that cut the `length - 1` pairs of neighbours into pieces whose temporaries stay in cache."""
    for start in range(0, length - 1, _CHUNK):
        yield start, min(start + _CHUNK, length - 1)
