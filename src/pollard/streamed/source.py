"""Where the numbers of a matrix come from, some rows at a time: matrices that are never there all at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOM = 1 << 21  # numbers of a matrix that are there at once: 8 MB
CACHED = 1 << 18  # numbers that stay in cache from one step to the next: 1 MB
GRAIN = 32  # rows: a multiple of those of every grain

Cuts = Iterator[tuple[int, int]]


class Pace:
    """How matrices are gone through: to their end. A rehearsal leaves rows out."""

    growth = 1.0  # of what shares its room with a block of rows

    def left(self, shape: tuple[int, int], cuts: Cuts) -> Cuts:
        """What is left of the rows that are gone through."""
        del shape
        return cuts

    def one_of(self, parts: float) -> AbstractContextManager[None]:
        """For a block that does one of so many parts alike."""
        del parts
        return nullcontext()


PACE: ContextVar[Pace] = ContextVar("PACE", default=Pace())  # noqa: B039 - nothing changes it


class Places(NamedTuple):
    """Places in some rows of a matrix: how many are in each row, integers `(rows,)`, and their columns, int64, ascending in a row."""

    counts: Tensor
    columns: Tensor

    def rows(self) -> Tensor:
        """The row of each, from 0 on."""
        rows = torch.arange(len(self.counts), dtype=torch.int64, device="cpu")
        return rows.repeat_interleave(self.counts, output_size=len(self.columns))

    def of(self, numbers: Tensor) -> Tensor:
        """What `numbers` has at these places of its rows."""
        return numbers.reshape(-1)[self.rows().mul_(numbers.shape[1]).add_(self.columns)]


class Source(ABC):
    """A matrix `shape` `(rows, columns)` of `dtype`, any block of whose rows can be asked for, again and again alike."""

    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def is_watched(self) -> bool:
        """Whether somebody is told of the rows that are made, and shows it."""
        return False

    @property
    def is_sparse(self) -> bool:
        """Whether `places`, of a mask, and `sparse` tell what need not be zero, sooner than rows are made."""
        return False

    @abstractmethod
    def rows(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last - 1`: `(last - first, columns)`, never to be written to."""

    def places(self, first: int, last: int) -> Places:
        """What is True in those rows of a mask."""
        raise NotImplementedError

    def picked(self, source: Source, first: int, last: int) -> tuple[Places, Tensor]:
        """`places` of a mask, and what `source` has there."""
        places = self.places(first, last)
        return places, places.of(source.rows(first, last))

    def sparse(self, first: int, last: int) -> tuple[Places, Tensor]:
        """All of those rows that need not be zero: places and numbers."""
        raise NotImplementedError

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The numbers at these places, int64 `(n,)` each, in any order."""
        found = torch.empty(len(rows), dtype=self.dtype, device="cpu")
        for (first, last), inside in by_block(self.shape, rows):
            found[inside] = self.rows(first, last)[rows[inside] - first, columns[inside]]
        return found


def blocks(shape: tuple[int, int], room: int = 0) -> Cuts:
    """The rows of a matrix in order, about as many at a time as ROOM holds, or `room`, whole grains of any pattern in each block.

    The same whoever asks for no more room, so that what is computed of a block comes out alike, bit for bit.

    >>> list(blocks((100, ROOM // 40)))
    [(0, 32), (32, 64), (64, 96), (96, 100)]
    """
    most = max(ROOM, round(room * PACE.get().growth))
    return _cut(shape, max(1, most // max(1, shape[1] * GRAIN)) * GRAIN)


def cached_rows(shape: tuple[int, int]) -> Cuts:
    """The rows of a matrix in order, about as many at a time as stay in cache: for what is done place by place.

    >>> list(cached_rows((100, CACHED // 40)))
    [(0, 40), (40, 80), (80, 100)]
    """
    return _cut(shape, max(1, CACHED // max(1, shape[1])))


def _cut(shape: tuple[int, int], step: int) -> Cuts:
    return PACE.get().left(shape, ((first, min(shape[0], first + step)) for first in range(0, shape[0], step)))


def by_block(shape: tuple[int, int], rows: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """The blocks of a matrix in which places of these `rows` lie, each once, in order, with the indices of those places.

    >>> [(block, inside.tolist()) for block, inside in by_block((100, ROOM // 40), torch.tensor([90, 3, 95]))]
    [((0, 32), [1]), ((64, 96), [0, 2])]
    """
    if bool((rows[1:] >= rows[:-1]).all()):  # as most topologies list them: sorting would cost more than all else
        ordered, places = rows, torch.arange(len(rows), dtype=torch.int64, device="cpu")
    else:
        ordered, places = rows.sort(stable=True)
    cuts = list(blocks(shape))
    ends = torch.searchsorted(ordered, torch.tensor([last for _, last in cuts], dtype=torch.int64, device="cpu"))
    begin = 0
    for block, end in zip(cuts, ends.tolist(), strict=True):
        if end > begin:
            yield block, places[begin:end]
        begin = end


@dataclass(frozen=True, slots=True, eq=False)
class Over(Source):
    """A matrix that is made of `source`, place by place, of its shape and dtype."""

    source: Source

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Of the source."""
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the source."""
        return self.source.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Constant(Source):
    """One number in every place."""

    shape: tuple[int, int]
    dtype: torch.dtype
    value: float

    def rows(self, first: int, last: int) -> Tensor:
        """That number, over and over, in the memory of one."""
        return torch.full((1, 1), self.value, dtype=self.dtype, device="cpu").expand(last - first, self.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Mapped(Source):
    """``function(*arguments)``, place by place, where some of the arguments are sources of one shape."""

    shape: tuple[int, int]
    dtype: torch.dtype
    function: Callable[..., Tensor]
    arguments: Sequence[Any]
    keeps_zero: bool = False  # where the first argument is zero

    def rows(self, first: int, last: int) -> Tensor:
        """The function of those rows."""
        found = self.function(
            *(each.rows(first, last) if isinstance(each, Source) else each for each in self.arguments)
        )
        return found.to(self.dtype)

    @property
    def is_sparse(self) -> bool:
        """Whether its only source is."""
        return self.keeps_zero and self.arguments[0].is_sparse

    def sparse(self, first: int, last: int) -> tuple[Places, Tensor]:
        """The function of what need not be zero in its only source."""
        places, numbers = self.arguments[0].sparse(first, last)
        return places, self.function(numbers, *self.arguments[1:]).to(self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Masked(Over):
    """The numbers of `source` where `mask` is True, else zero."""

    mask: Source

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows."""
        return torch.where(self.mask.rows(first, last), self.source.rows(first, last), 0.0)

    @property
    def is_sparse(self) -> bool:
        """Whether the mask is."""
        return self.mask.is_sparse

    def sparse(self, first: int, last: int) -> tuple[Places, Tensor]:
        """What the mask keeps of those rows."""
        return self.mask.picked(self.source, first, last)


@dataclass(frozen=True, slots=True, eq=False)
class Held(Over):
    """The numbers of `source`; those that were asked for last are held in `room`, which all that share it have one place in."""

    room: list[tuple[Source, int, int, Tensor]]

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows."""
        for source, begin, end, made in self.room:
            if source is self.source and (begin, end) == (first, last):
                return made
        self.room.clear()  # before others are made beside them
        made = self.source.rows(first, last)
        self.room.append((self.source, first, last, made))
        return made

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The numbers at these places."""
        return self.source.at(rows, columns)


@dataclass(frozen=True, slots=True, eq=False)
class Part(Source):
    """The rows of `whole` from `start` on."""

    shape: tuple[int, int]
    dtype: torch.dtype
    whole: Source
    start: int

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows of the part."""
        return self.whole.rows(self.start + first, self.start + last)


__all__ = [
    "ROOM",
    "Constant",
    "Held",
    "Mapped",
    "Masked",
    "Over",
    "Part",
    "Places",
    "Source",
    "blocks",
    "by_block",
    "cached_rows",
]
