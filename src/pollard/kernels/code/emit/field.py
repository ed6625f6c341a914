"""A field: what a convolution reads of one sample, or of a vector of samples, copied beside its zero halo.

The halo is made zero at first; only what is inside is written anew for each sample. Numbers are float32, whatever they were.
With one sample `abreast`, its rows lie as they are, the vectors of a kernel along them. Otherwise samples lie side by side, pixel
by pixel, and vectors are of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import NUMBERS, Numbers
from pollard.kernels.code.simd import I32, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS


def names(of: str) -> tuple[str, ...]:
    """The arguments that say how the images `of` lie, and where in a field they go, beside `of` itself.

    Strides in numbers: of a sample, a channel, a row; of a `_PLANE`, a channel of the field. They are copied slab by slab, of which there are
    `_SLABS`, `_SLAB` numbers apart in the field: each a channel, or all channels, where these are smaller than a vector. `_spots`: int32,
    where in a slab each pixel of it goes, of samples abreast; else rows of `_WIDTH` numbers go to `_START` and every `_PITCH` from there.
    """
    ints = ("SAMPLE", "CHANNEL", "ROW", "SLABS", "SLAB", "ROWS", "WIDTH", "PIXELS", "PLANE", "START", "PITCH", "FIELD")
    return f"{of}_spots", *(f"{of.upper()}_{name}" for name in ints)


# Where a sample goes, and whether it does.
Target = tuple[Value, Value]


@dataclass(frozen=True, slots=True)
class Images:
    """Images of a batch, all channels of all samples, and the field that samples of them are copied to."""

    code: Code
    spec: KernelSpec
    arguments: Arguments
    of: str
    field: Value

    def __getitem__(self, name: str) -> Value:
        return self.arguments[f"{self.of}_{name}" if name.islower() else f"{self.of.upper()}_{name}"]

    @property
    def lanes(self) -> int:
        """float32 lanes of a vector."""
        return TARGETS[self.spec.isa].lanes

    @property
    def numbers(self) -> Numbers:
        """How the numbers of the images lie in memory."""
        return NUMBERS[self.spec.numbers]

    @classmethod
    def of_unit(cls, code: Code, spec: KernelSpec, arguments: Arguments, of: str, unit: Value) -> Self:
        """Those whose fields, one for each unit of work, are the argument `of` + ``_field``."""
        start = code.mul(unit, arguments[f"{of.upper()}_FIELD"])
        return cls(code, spec, arguments, of, code.floats(arguments[f"{of}_field"], start))

    def clear(self) -> None:
        """Make all of the field zero."""
        self._zero(self.field, self["FIELD"])

    def _zero(self, start: Value, count: Value) -> None:
        code = self.code

        def zero(first: Value, some: int) -> None:
            code.store(code.zero(some), code.floats(start, first))

        blocks(code, count, self.lanes, zero)

    def take(self, sample: Value, samples: Value, fresh: Value) -> None:
        """Copy what starts at `sample` of the `samples` there are: one, or as many as lie abreast, zero beyond the last.

        Where the field is `fresh`, all around is made zero before.
        """
        code = self.code
        with code.loop(0, self["SLABS"]) as slab:
            target = code.floats(self.field, code.mul(slab.index, self["SLAB"]))
            with code.when(fresh):
                self._zero(target, self["SLAB"])
            if self.spec.abreast == 1:
                self._rows(self._image(sample, slab.index), code.floats(target, self["START"]))
            else:
                for first in range(0, self.spec.abreast, self.lanes):
                    self._abreast(code.add(sample, first), samples, slab.index, code.floats(target, first))

    def at(self, sample: Value) -> Value:
        """Where channels of what starts at `sample` are: in the field, or where there are no slabs to take, in the images."""
        if self.spec.abreast > 1 or self.spec.numbers != "float32":
            return self.field
        code = self.code
        taken = code.less(0, self["SLABS"])
        return code.ir.select(taken, self.field, self._image(sample, code.integer(0)))

    def give(self, sample: Value, samples: Value, slabs: tuple[Value, Value]) -> None:
        """Write what `take` would copy, from the first of `slabs` on up to the last; zeros are left."""
        code = self.code
        with code.loop(*slabs) as slab:
            source = code.floats(self.field, code.mul(slab.index, self["SLAB"]))
            if self.spec.abreast == 1:
                self._rows(self._image(sample, slab.index), code.floats(source, self["START"]), back=True)
            else:
                for first in range(0, self.spec.abreast, self.lanes):
                    each = [code.add(sample, first + lane) for lane in range(self.lanes)]
                    targets = [(self._image(own, slab.index), code.less(own, samples)) for own in each]
                    place = code.floats(source, first), self["spots"]
                    spread(code, self.spec, place, self["PIXELS"], targets)
            self._zero(source, self["SLAB"])

    def _image(self, sample: Value, slab: Value) -> Value:
        code = self.code
        place = code.add(code.mul(sample, self["SAMPLE"]), code.mul(slab, self["CHANNEL"]))
        return self.numbers.at(code, self.arguments[self.of], place)

    def _rows(self, image: Value, inside: Value, *, back: bool = False) -> None:
        code, lanes, width = self.code, self.lanes, self["WIDTH"]
        with code.loop(0, self["ROWS"]) as row:
            there = self.numbers.at(code, image, code.mul(row.index, self["ROW"]))
            here = code.floats(inside, code.mul(row.index, self["PITCH"]))

            def copy(first: Value, count: int, there: Value = there, here: Value = here) -> None:
                outer, inner = self.numbers.at(code, there, first), code.floats(here, first)
                if back:
                    self.numbers.store_few(code, code.load(inner, count), outer)
                else:
                    code.store(self.numbers.few(code, outer, count), inner)

            blocks(code, width, lanes, copy)

    def _abreast(self, first: Value, samples: Value, slab: Value, target: Value) -> None:
        code, lanes = self.code, self.lanes
        last = code.sub(samples, 1)
        each = [code.add(first, lane) for lane in range(lanes)]
        sources = [self._image(code.minimum(sample, last), slab) for sample in each]
        there = [code.less(sample, samples) for sample in each]

        def copy(pixel: Value, count: int) -> None:
            found = [self.numbers.few(code, self.numbers.at(code, source, pixel), count) for source in sources]
            zero = code.zero(count)
            rows = [code.ir.select(known, row, zero) for known, row in zip(there, found, strict=True)]
            columns = code.transpose(rows, lanes) if count == lanes else [_packed(code, rows, lanes)]
            for number, column in enumerate(columns):
                spot = code.index_at(self["spots"], code.add(pixel, number))
                code.store(column, code.floats(target, spot))

        blocks(code, self["PIXELS"], lanes, copy)


def spread(code: Code, spec: KernelSpec, source: tuple[Value, Value], pixels: Value, targets: Sequence[Target]) -> None:
    """Write the samples that lie abreast, pixel p of them at ``ends[p]`` from `room` on, to `targets`; source: both."""
    lanes, numbers = TARGETS[spec.isa].lanes, NUMBERS[spec.numbers]
    room, ends = source

    def copy(pixel: Value, count: int) -> None:
        columns = []
        for number in range(count):
            end = code.index_at(ends, code.add(pixel, number))
            columns.append(code.load(code.floats(room, end), lanes))
        rows = code.transpose(columns, lanes) if count == lanes else _apart(code, columns[0], lanes)
        for row, (target, wanted) in zip(rows, targets, strict=True):
            with code.when(wanted):
                numbers.store_few(code, row, numbers.at(code, target, pixel))

    blocks(code, pixels, lanes, copy)


def blocks(code: Code, count: Value, lanes: int, body: Callable[[Value, int], None]) -> None:
    """``body(first, lanes)`` over `count` things, the last ones again where they do not fill vectors; one by one where too few."""
    enough = code.less(lanes - 1, count)
    with code.ir.if_else(enough) as (many, few):
        with many:
            last = code.sub(count, lanes)
            with code.loop(0, count, lanes) as part:
                body(code.minimum(part.index, last), lanes)
        with few, code.loop(0, count) as single:
            body(single.index, 1)


def _packed(code: Code, scalars: Sequence[Value], lanes: int) -> Value:
    made = code.zero(lanes)
    for lane, scalar in enumerate(scalars):
        made = code.ir.insert_element(made, scalar, I32(lane))
    return made


def _apart(code: Code, vector: Value, lanes: int) -> list[Value]:
    return [code.ir.extract_element(vector, I32(lane)) for lane in range(lanes)]
