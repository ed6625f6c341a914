"""Weights whose numbers lie in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pollard.formats.entries import Entry
from pollard.streamed.source import ROOM, Source, by_block


@dataclass(frozen=True, slots=True, eq=False)
class Stored(Source):
    """The numbers of a tensor in a file, read when they are asked for, in `dtype`: a row for each index of its first axis.

    Raises StoreError, as `Entry`, where the file is another by then.

    >>> from pollard.formats.entries import entries
    >>> from pollard.formats.store import save_tensors
    >>> save_tensors("weights.safetensors", {"w": torch.arange(6.0).view(3, 2)}, {})
    >>> source = Stored(entries("weights.safetensors")["w"], torch.float32)
    >>> source.rows(1, 3), source.at(torch.tensor([2, 0]), torch.tensor([0, 1]))
    (tensor([[2., 3.],
            [4., 5.]]), tensor([4., 1.]))
    """

    entry: Entry
    dtype: torch.dtype
    saw: Callable[[int], None] | None = None  # told of the bytes of each reading

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Rows, and the numbers in each."""
        rows, *rest = self.entry.shape
        return rows, prod(rest)

    @property
    def is_watched(self) -> bool:
        """Whether somebody is told of the bytes that are read."""
        return self.saw is not None

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows, read from the file."""
        columns = self.shape[1]
        found = self.entry.read(first * columns, last * columns)
        if self.saw is not None:
            self.saw(found.nbytes)
        return found.view(last - first, columns).to(self.dtype)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The numbers at these places, int64 `(n,)` each: the file is read once from front to back, from the first row of a block that is
        needed to the last.
        """
        found = torch.empty(len(rows), dtype=self.dtype, device="cpu")
        for _, inside in by_block(self.shape, rows):
            own = rows[inside]
            first, last = int(own[0]), int(own[-1]) + 1  # by_block orders them
            found[inside] = self.rows(first, last)[own - first, columns[inside]]
        return found

    def __repr__(self) -> str:
        return f"{self.entry.place.name!r} of {self.entry.path.name}"


class Turned(Stored):
    """The transpose of a matrix in a file: a row for each of its columns.

    Each block of rows takes a walk through all of the file's, some of them at a time.

    >>> from pollard.formats.entries import entries
    >>> from pollard.formats.store import save_tensors
    >>> save_tensors("weights.safetensors", {"w": torch.arange(6.0).view(3, 2)}, {})
    >>> Turned(entries("weights.safetensors")["w"], torch.float32).rows(1, 2)
    tensor([[1., 3., 5.]])
    """

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Columns of what is in the file, and its rows."""
        inner, out = self.entry.shape
        return out, inner

    def rows(self, first: int, last: int) -> Tensor:
        """Those columns of what is in the file."""
        out, inner = self.shape
        made = torch.empty((last - first, inner), dtype=self.dtype, device="cpu")
        step = max(1, ROOM // out)
        for start in range(0, inner, step):
            end = min(inner, start + step)
            made[:, start:end] = self.entry.read(start * out, end * out).view(-1, out)[:, first:last].t()
        if self.saw is not None:
            self.saw(made.numel() * self.entry.dtype.itemsize)
        return made

    at = Source.at  # block by block: no row of these lies in one piece


__all__ = ["Stored", "Turned"]
