"""Where everything lies that a kernel reads and writes: fields with their halos, tiles of pixels, the place of each tap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor

from pollard.kernels.convolutions.window import Axis

MOST = 8  # vectors of a turn in dot products, which are written out
LINE = 64  # bytes that are fetched at once
TURN = 3  # what a grain costs besides, in vectors


@dataclass(frozen=True)
class Field:
    """Images of `channels` in a field: one sample of them, or as many as lie `abreast`.

    A pixel is `abreast` numbers, a row `pitch`, a channel `plane`. Of one sample, vectors of `lanes` fill rows.
    """

    rows: Axis
    columns: Axis
    channels: int
    abreast: int
    lanes: int

    @cached_property
    def pitch(self) -> int:
        """Numbers of a row."""
        if self.abreast > 1:
            return self.columns.extent * self.abreast
        filled = -(-max(self.columns.counts) // self.lanes) * self.lanes
        return max(self.columns.extent, filled + max(self.columns.taps))

    @cached_property
    def plane(self) -> int:
        """Numbers of a channel; samples abreast have a last pixel that nobody reads, for those of an image that no tap meets."""
        return spaced(self.rows.extent * self.pitch + (self.abreast if self.abreast > 1 else 0))

    @cached_property
    def size(self) -> int:
        """Numbers of all channels, in whole vectors."""
        return -(-self.channels * self.plane // self.lanes) * self.lanes

    def offsets(self) -> Tensor:
        """int32 `(channels * taps,)`: where each is read for the first pixel of its phase."""
        down, along = (np.array(axis.taps, np.int64) for axis in (self.rows, self.columns))
        taps = (down[:, None] * self.pitch + along * self.abreast).reshape(-1)
        found = np.arange(self.channels)[:, None] * self.plane + taps
        return torch.from_numpy(found.reshape(-1).astype(np.int32))

    def spots(self) -> Tensor:
        """int32, where in its channel each pixel of an image goes, of samples abreast."""
        down, along = (
            np.where(place < axis.extent, place, -1)
            for axis in (self.rows, self.columns)
            for place in [np.arange(axis.size) + axis.shift]
        )
        there = down[:, None] * self.pitch + along * self.abreast
        met = (down[:, None] >= 0) & (along >= 0)
        return torch.from_numpy(np.where(met, there, self.plane - self.abreast).reshape(-1).astype(np.int32))

    def arguments(self, of: str, strides: tuple[int, ...], parts: int = 1) -> dict[str, Tensor | int]:
        """What a kernel wants to know of images with `strides` of samples, channels and rows, `parts` of which are apart."""
        rows, columns, own = self.rows, self.columns, of.upper()
        pixels = rows.size * columns.size
        spots: Tensor | int = self.spots() if self.abreast > 1 else 0
        slabs, slab = self.channels, self.plane
        if isinstance(spots, Tensor) and parts == 1 and strides[1] == pixels < self.lanes:
            spots, pixels, slabs, slab = joined(spots, slabs, slab), slabs * pixels, 1, self.size
        sizes: dict[str, Tensor | int] = {
            f"{own}_{name}": strides[i] for i, name in enumerate(("SAMPLE", "CHANNEL", "ROW"))
        }
        sizes |= {
            f"{own}_SLABS": slabs,
            f"{own}_SLAB": slab,
            f"{own}_ROWS": min(rows.size, rows.extent - rows.shift),
            f"{own}_WIDTH": min(columns.size, columns.extent - columns.shift),
            f"{own}_PIXELS": pixels,
            f"{own}_PLANE": self.plane,
            f"{own}_START": rows.shift * self.pitch + columns.shift,
            f"{own}_PITCH": self.pitch,
            f"{own}_FIELD": self.size,
        }
        return sizes | {f"{of}_spots": spots}


@dataclass(frozen=True)
class Patches:
    """A result cut into patches of `down` x `along` vectors; those at the end overlap, and write the same again.

    width: numbers of a row of a phase of the result, or of what patches are cut from. groups: row groups of a phase of the result.
    """

    field: Field
    down: int
    along: int
    width: int
    groups: int

    @classmethod
    def best(cls, field: Field, groups: int, most: int) -> Patches:
        """Those of at most `most` vectors that make the fewest turns."""
        height, width = (min(filter(None, axis.counts)) for axis in (field.rows, field.columns))
        if field.abreast == 1:
            width = -(-width // field.lanes)
        vectors = max(1, field.abreast // field.lanes)

        def cost(shape: tuple[int, int]) -> float:
            down, along = shape
            return -(-height // down) * -(-width // along) * (TURN + down * along * vectors)

        room = max(1, most // vectors)
        shapes = [(min(height, room // along), along) for along in range(1, min(width, room) + 1)]
        down, along = min(shapes, key=lambda shape: (cost(shape), -shape[1]))
        return cls(field, down, along, max(field.columns.counts) * field.abreast, groups)

    @cached_property
    def window(self) -> int:
        """Bytes of a channel of the field that a patch reads, in whole lines."""
        field = self.field
        rows = (self.down - 1) * field.rows.step + max(field.rows.taps) + 1
        vectors = (self.along - 1) * field.columns.step + 1
        pixels = vectors * field.lanes if field.abreast == 1 else vectors
        line = -(-4 * (pixels + max(field.columns.taps)) * field.abreast // LINE) + (field.abreast == 1)
        return min(rows * line * LINE, 4 * field.plane + LINE)

    @cached_property
    def plane(self) -> int:
        """Numbers of a channel of a phase of the result, in its room."""
        return spaced(max(self.field.rows.counts) * self.width)

    @property
    def vectors(self) -> int:
        """Of a patch."""
        return len(self.reach())

    def reach(self) -> tuple[tuple[int, int], ...]:
        """Where each vector begins, from the beginning of its patch, in the field and in the result."""
        field, step = self.field, self.field.columns.step
        parts = range(0, field.abreast, field.lanes) if field.abreast > 1 else range(1)
        found = []
        for i, j in product(range(self.down), range(self.along)):
            x, y = i * field.rows.step * field.pitch, i * self.width
            if field.abreast == 1:
                right = down = self._vectors()[j] if self._whole() else j * field.lanes
            else:
                right, down = j * step * field.abreast, j * field.abreast
            found += [(x + right + part, y + down + part) for part in parts]
        return tuple(found)

    def table(self) -> Tensor:
        """int32 `(patches, 4)`: where each begins, in the field and in the result, and the row groups of its phase."""
        return torch.tensor(list(self._each()), dtype=torch.int32, device="cpu")

    def ends(self) -> Tensor:
        """int32, where in the room each pixel of the result is, of its first channel."""
        rows, columns = self.field.rows, self.field.columns
        down, along = (np.arange(axis.places) for axis in (rows, columns))
        (phase, i), (turn, j) = _apart(down, rows), _apart(along, columns)
        first = (phase[:, None] * len(columns.counts) + turn) * self.groups * self.plane
        return torch.from_numpy((first + i[:, None] * self.width + j * self.field.abreast).reshape(-1).astype(np.int32))

    def _vectors(self) -> list[int]:
        # Where those of a whole row begin: the last one ends with it.
        width, lanes = self.field.columns.counts[0], self.field.lanes
        return [min(start, width - lanes) for start in range(0, width, lanes)]

    def _whole(self) -> bool:
        return self.along == len(self._vectors())

    def _each(self) -> Iterator[tuple[int, int, int, int]]:
        field = self.field
        rows, columns = field.rows, field.columns
        phases = product(range(len(rows.counts)), range(len(columns.counts)))
        for number, (phase, turn) in enumerate(phases):
            height, width = rows.counts[phase], columns.counts[turn]
            if not height or not width:
                continue
            for i, j in product(_starts(height, self.down), self._pieces(width)):
                y = i * self.width + j * field.abreast
                x = i * rows.step * field.pitch + j * columns.step * field.abreast
                yield x, y, number * self.groups, (number + 1) * self.groups

    def _pieces(self, width: int) -> list[int]:
        if self.field.abreast > 1:
            return _starts(width, self.along)
        return [0] if self._whole() else _starts(width, self.along * self.field.lanes)


def spaced(plane: int) -> int:
    """Numbers of a channel, some more where channels would fall into the same few places of a cache."""
    return plane if plane % 256 else plane + 16


def joined(places: Tensor, channels: int, plane: int) -> Tensor:
    """Places of the pixels of one channel as those of all, one after another."""
    return (torch.arange(channels, dtype=torch.int32, device="cpu")[:, None] * plane + places).reshape(-1)


def _starts(count: int, length: int) -> list[int]:
    # Where pieces of `length` begin that cover `count`, the last one ending with it.
    return [min(start, count - length) for start in range(0, count, length)]


def _apart(places: np.ndarray, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    number, phase = np.divmod(places, len(axis.counts))
    return phase, number


@dataclass(frozen=True)
class Dots:
    """How the pixels of a result are walked for dot products: every one once, `down` x `along` vectors at a time."""

    x: Field
    dy: Field

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and vectors of a row, or pixels, that are taken at a time: whole parts of what there is."""
        height, width, vectors = self._sizes()
        most = max(1, MOST // vectors)
        along = max(part for part in range(1, width + 1) if width % part == 0 and part <= most)
        down = (
            max(part for part in range(1, height + 1) if height % part == 0 and part * along <= most)
            if along == width
            else 1
        )
        return down, along

    def _sizes(self) -> tuple[int, int, int]:
        height, width = self.dy.rows.counts[0], self.dy.columns.counts[0]
        if self.dy.abreast == 1:
            width = -(-width // self.dy.lanes)
        return height, width, max(1, self.dy.abreast // self.dy.lanes)

    def reach(self) -> tuple[tuple[int, int], ...]:
        """Where each vector begins, in the fields of X and dY."""
        down, along = self.shape
        return tuple(self._at(i, j, first) for i, j in product(range(down), range(along)) for first in self._firsts())

    def table(self) -> Tensor:
        """int32 `(tiles, 2)`: where each begins."""
        (height, width, _), (down, along) = self._sizes(), self.shape
        starts = product(range(0, height, down), range(0, width, along))
        return torch.tensor([self._at(i, j, 0) for i, j in starts], dtype=torch.int32, device="cpu")

    def _firsts(self) -> range:
        return range(0, self.dy.abreast, self.dy.lanes) if self.dy.abreast > 1 else range(1)

    def _at(self, i: int, j: int, first: int) -> tuple[int, int]:
        x, dy = self.x, self.dy
        unit = dy.lanes if dy.abreast == 1 else dy.abreast
        return (
            i * x.rows.step * x.pitch + j * x.columns.step * unit + first,
            i * dy.pitch + j * unit + first,
        )


__all__ = ["Dots", "Field", "Patches", "joined"]
