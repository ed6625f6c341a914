"""How a batch is cut into panels of vectors, in Python and inside a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS


@dataclass(frozen=True, slots=True)
class Panels:
    """A batch cut into `count` panels of `vectors` vectors, the first `wide` of them one vector wider.

    >>> Panels.cut(batch=100, lanes=8, most=8)
    Panels(count=2, vectors=6, wide=1, last=4)
    """

    count: int
    vectors: int
    wide: int
    last: int  # lanes filled in the last vector of all; 0 when it is full

    @classmethod
    def cut(cls, batch: int, lanes: int, most: int) -> Panels:
        """The most even cut of `batch` columns into panels of at most `most` vectors of `lanes`."""
        parts = -(-batch // lanes)
        count = -(-parts // most)
        vectors, wide = divmod(parts, count)
        return cls(count, vectors, wide, batch % lanes)

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What a kernel is compiled for: vectors a panel, whether some are wider, whether the last is partly filled."""
        return self.vectors, self.wide > 0, self.last > 0

    def columns(self, lanes: int) -> int:
        """Columns of the packed operand, the unfilled lanes included."""
        return (self.count * self.vectors + self.wide) * lanes


class Panel:
    """A panel inside a kernel: `vectors` of them from column `start` on, the last perhaps partly filled."""

    def __init__(self, code: Code, start: Value, vectors: int, lanes: int, mask: Value | None = None) -> None:
        self.code, self.start, self.vectors, self.lanes, self._mask = code, start, vectors, lanes, mask

    @property
    def width(self) -> int:
        """Columns of the panel, unfilled lanes included."""
        return self.vectors * self.lanes

    def load(self, row: Value, *, masked: bool) -> list[Value]:
        """The vectors that start at `row`; with `masked`, nothing is read beyond the batch."""
        return [self._load(self._at(row, v), masked and v == self.vectors - 1) for v in range(self.vectors)]

    def store(self, values: list[Value], row: Value, *, masked: bool) -> None:
        """Write `values` from `row` on; with `masked`, nothing is written beyond the batch."""
        for v, value in enumerate(values):
            if masked and v == self.vectors - 1 and self._mask is not None:
                self.code.masked_store(value, self._at(row, v), self._mask, self.lanes)
            else:
                self.code.store(value, self._at(row, v))

    def _at(self, row: Value, vector: int) -> Value:
        return self.code.floats(row, vector * self.lanes)

    def _load(self, pointer: Value, masked: bool) -> Value:
        if masked and self._mask is not None:
            return self.code.masked_load(pointer, self._mask, self.lanes)
        return self.code.load(pointer, self.lanes)


PanelBody = Callable[[Code, Arguments, Panel, tuple[Value, Value]], None]


def panel_module(spec: KernelSpec, names: Sequence[str], body: PanelBody) -> ir.Module:
    """A module whose unit of work is a panel of the batch by a chunk: ``body(code, arguments, panel, (chunk, turn))``."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        index, turn = work
        panel = code.ir.sdiv(index, arguments["CHUNKS"])
        chunk = code.ir.srem(index, arguments["CHUNKS"])
        counts = (arguments["PANELS"], arguments["WIDE"], arguments["LAST"])
        each_kind(code, spec, panel, counts, lambda kind: body(code, arguments, kind, (chunk, turn)))

    return kernel_module(names, unit, x86=spec.isa != "neon")


def each_kind(
    code: Code, spec: KernelSpec, index: Value, counts: tuple[Value, Value, Value], body: Callable[[Panel], None]
) -> None:
    """Run `body` on panel `index`, in a version compiled for its kind: wide, plain, or the ragged last one.

    counts: how many panels there are, how many of them are wide, how many lanes of the last vector are filled.
    """
    panels, wide, last = counts
    lanes = TARGETS[spec.isa].lanes
    start = panel_extent(code, index, wide, code.integer(spec.vectors), lanes)[0]
    is_wide = code.less(index, wide)
    if spec.wide:
        with code.when(is_wide):
            body(Panel(code, start, spec.vectors + 1, lanes))
    with code.when(code.ir.not_(is_wide)):
        if not spec.ragged:
            body(Panel(code, start, spec.vectors, lanes))
            return
        with code.ir.if_else(code.equal(index, code.sub(panels, 1))) as (final, plain):
            with final:
                body(Panel(code, start, spec.vectors, lanes, code.lane_mask(last, lanes)))
            with plain:
                body(Panel(code, start, spec.vectors, lanes))


def panel_extent(code: Code, index: Value, wide: Value, vectors: Value, lanes: int) -> tuple[Value, Value]:
    """The first column of panel `index`, and its width, where panels have so many `vectors`, and `wide` one more."""
    start = code.mul(code.add(code.mul(index, vectors), code.minimum(index, wide)), lanes)
    width = code.mul(code.ir.select(code.less(index, wide), code.add(vectors, 1), vectors), lanes)
    return start, width
