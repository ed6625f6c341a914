"""How a batch is cut into panels of vectors, in Python and inside a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from pollard.kernels.code.emit import amx
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS, Mask, dense
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS


@dataclass(frozen=True, slots=True)
class Panels:
    """A batch cut into `count` panels of `vectors` vectors, the first `wide` of them one vector wider.

    A vector is what one load brings: as many numbers as lanes, of half precision twice as many.

    >>> Panels.cut(batch=100, unit=8, most=8)
    Panels(count=2, vectors=6, wide=1, last=4)
    """

    count: int
    vectors: int
    wide: int
    last: int  # numbers filled in the last vector of all; 0 when it is full

    @classmethod
    def cut(cls, batch: int, unit: int, most: int) -> Panels:
        """The most even cut of `batch` columns into panels of at most `most` vectors of `unit` numbers."""
        parts = -(-batch // unit)
        count = -(-parts // most)
        vectors, wide = divmod(parts, count)
        return cls(count, vectors, wide, batch % unit)

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What a kernel is compiled for: vectors a panel, whether some are wider, whether the last is partly filled."""
        return self.vectors, self.wide > 0, self.last > 0

    def columns(self, unit: int) -> int:
        """Columns of the packed operand, the unfilled ones included."""
        return (self.count * self.vectors + self.wide) * unit


class Panel:
    """A panel inside a kernel: `vectors` of them from column `start` on, the last perhaps partly `filled`.

    Of each row it is `count` vectors of float32 in registers, whose lanes are in the order in which `store` takes them.
    """

    def __init__(self, code: Code, spec: KernelSpec, start: Value, vectors: int, filled: Value | None = None) -> None:
        self.code, self.start, self.vectors = code, start, vectors
        self.numbers, self.lanes = dense(spec), TARGETS[spec.isa].lanes
        self.unit, self.count = self.numbers.unit(self.lanes), vectors * self.numbers.parts
        self.filled = filled
        self._mask = None if filled is None else Mask.of(code, filled, self.numbers, self.lanes)

    @property
    def width(self) -> int:
        """Columns of the panel, unfilled ones included."""
        return self.vectors * self.unit

    def load(self, row: Value, *, masked: bool) -> list[Value]:
        """The numbers that start at `row`; with `masked`, nothing is read beyond the batch."""
        words = self.words(row, masked=masked)
        return [part for each in words for part in self.numbers.widened(self.code, each, self.lanes)]

    def words(self, row: Value, *, masked: bool) -> list[Value]:
        """They as they lie, a vector of words for each of the panel."""
        found = []
        for v in range(self.vectors):
            mask = self._mask if masked and v == self.vectors - 1 else None
            found.append(self.numbers.words(self.code, self._at(row, v), self.lanes, mask))
        return found

    def store(self, values: list[Value], row: Value, *, masked: bool) -> None:
        """Write `values` from `row` on, rounded once; with `masked`, nothing is written beyond the batch."""
        parts = self.numbers.parts
        for v in range(self.vectors):
            mask = self._mask if masked and v == self.vectors - 1 else None
            own = values[v * parts : (v + 1) * parts]
            self.numbers.store(self.code, own, self._at(row, v), self.lanes, mask)

    def copy(self, source: Value, target: Value) -> None:
        """Copy the row of a batch that starts at `source` to `target`, in which there is room for all of the panel."""
        for v in range(self.vectors):
            mask = self._mask if v == self.vectors - 1 else None
            words = self.numbers.words(self.code, self._at(source, v), self.lanes, mask)
            self.numbers.put_words(self.code, words, self._at(target, v))

    def rest(self, pointer: Value) -> list[Value]:
        """The sums that `put_to_rest` wrote to `pointer`."""
        return [self.code.load(self.code.floats(pointer, c * self.lanes), self.lanes) for c in range(self.count)]

    def put_to_rest(self, values: list[Value], pointer: Value) -> None:
        """Write `values` to `pointer` as float32, in the order of registers: `width` numbers."""
        for c, value in enumerate(values):
            self.code.store(value, self.code.floats(pointer, c * self.lanes))

    def _at(self, row: Value, vector: int) -> Value:
        return self.numbers.at(self.code, row, vector * self.unit)


PanelBody = Callable[[Code, Arguments, Panel, tuple[Value, Value]], None]


def panel_module(spec: KernelSpec, names: Sequence[str], body: PanelBody, *, tiles: amx.Shapes = ()) -> ir.Module:
    """A module whose unit of work is a panel of the batch by a chunk: ``body(code, arguments, panel, (chunk, turn))``."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        index, turn = work
        panel = code.ir.sdiv(index, arguments["CHUNKS"])
        chunk = code.ir.srem(index, arguments["CHUNKS"])
        counts = (arguments["PANELS"], arguments["WIDE"], arguments["LAST"])
        each_kind(code, spec, panel, counts, lambda kind: body(code, arguments, kind, (chunk, turn)))

    return kernel_module(names, unit, x86=spec.isa != "neon", tiles=tiles)


def each_kind(
    code: Code, spec: KernelSpec, index: Value, counts: tuple[Value, Value, Value], body: Callable[[Panel], None]
) -> None:
    """Run `body` on panel `index`, in a version compiled for its kind: wide, plain, or the ragged last one.

    counts: how many panels there are, how many of them are wide, how many numbers of the last vector are filled.
    """
    panels, wide, last = counts
    start = panel_extent(code, spec, index, wide, code.integer(spec.vectors))[0]
    is_wide = code.less(index, wide)
    if spec.wide:
        with code.when(is_wide):
            body(Panel(code, spec, start, spec.vectors + 1))
    with code.when(code.ir.not_(is_wide)):
        if not spec.ragged:
            body(Panel(code, spec, start, spec.vectors))
            return
        with code.ir.if_else(code.equal(index, code.sub(panels, 1))) as (final, plain):
            with final:
                body(Panel(code, spec, start, spec.vectors, last))
            with plain:
                body(Panel(code, spec, start, spec.vectors))


def panel_extent(code: Code, spec: KernelSpec, index: Value, wide: Value, vectors: Value) -> tuple[Value, Value]:
    """The first column of panel `index`, and its width, where panels have so many `vectors`, and `wide` one more."""
    unit = NUMBERS[spec.numbers].unit(TARGETS[spec.isa].lanes)
    start = code.mul(code.add(code.mul(index, vectors), code.minimum(index, wide)), unit)
    width = code.mul(code.ir.select(code.less(index, wide), code.add(vectors, 1), vectors), unit)
    return start, width
