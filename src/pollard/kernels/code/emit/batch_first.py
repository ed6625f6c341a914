"""Results whose rows of the batch are contiguous: what kernels sum feature by feature is turned on its way to memory."""

from __future__ import annotations

from pollard.kernels.code.emit.numbers import Mask
from pollard.kernels.code.emit.panels import Panel
from pollard.kernels.code.simd import I64, POINTER, Code, Value
from pollard.kernels.code.spec import KernelSpec

LINE = 64


class Turned:
    """A panel of the batch in such a result `y`, whose rows are `stride` numbers apart."""

    def __init__(self, code: Code, spec: KernelSpec, panel: Panel, y: Value, stride: Value) -> None:
        self.code, self.panel, self.numbers, self.stride = code, panel, panel.numbers, stride
        self._first, self._turn = self.numbers.at(code, y, code.mul(panel.start, stride)), _turning(code, spec, panel)

    def write(self, source: Value, features: tuple[Value, Value]) -> None:
        """Write the features from the first to the end, whose sums were put to rest one after another from `source` on."""
        code, (first, end) = self.code, features
        filled = code.integer(0) if self.panel.filled is None else self.panel.filled
        target = self.numbers.at(code, self._first, first)
        code.ir.call(self._turn, [source, target, code.sub(end, first), self.stride, filled])


class Resting(Turned):
    """One to which finished sums come a row of Y, which is a feature, at a time: they rest in L1 until there are enough to be written.

    together: of the rows, how many are finished at once, a power of two; they begin at a multiple of what is written at once.
    """

    def __init__(  # noqa: PLR0917
        self, code: Code, spec: KernelSpec, panel: Panel, y: Value, stride: Value, together: int
    ) -> None:
        super().__init__(code, spec, panel, y, stride)
        self.rows = max(panel.unit, together)
        self._room = code.room(4 * self.rows * panel.width, align=LINE)

    def ask(self, first: Value, count: int) -> None:
        """Ask for the memory of as many samples as so many rows from the `first` on are a share of what is written at once."""
        code, share = self.code, self.panel.width // self.rows
        place = code.ir.and_(first, code.integer(self.rows - 1))
        target = self.numbers.at(code, self._first, code.sub(first, place))
        with code.loop(code.mul(place, share), code.mul(code.add(place, count), share)) as sample:
            code.prefetch(self.numbers.at(code, target, code.mul(sample.index, self.stride)))

    def put(self, row: Value, sums: list[Value]) -> None:
        """Take the sums of `row`."""
        place = self.code.ir.and_(row, self.code.integer(self.rows - 1))
        self.panel.put_to_rest(sums, self.code.floats(self._room, self.code.mul(place, self.panel.width)))

    def flush(self, end: Value, last: Value) -> None:
        """Write the rows before `end` once there are enough of them, or where no more come, as `last` says."""
        code = self.code
        part = code.ir.and_(end, code.integer(self.rows - 1))
        enough = code.equal(part, 0)
        with code.when(code.ir.or_(enough, last)):
            count = code.ir.select(enough, code.integer(self.rows), part)
            self.write(self._room, (code.sub(end, count), end))


def _turning(code: Code, spec: KernelSpec, panel: Panel) -> Value:
    """The function that turns panels of that kind: apart, so that the registers of the products are their own."""
    name = f"turn_{panel.vectors}{'' if panel.filled is None else '_ragged'}"
    known = code.module.globals.get(name)
    if known is not None:
        return known
    own = Code(code.module, name, [POINTER, POINTER, I64, I64, I64])
    own.function.attributes.add("noinline")
    own.function.linkage = "internal"
    source, target, features, stride, filled = own.function.args
    like = Panel(own, spec, own.integer(0), panel.vectors, None if panel.filled is None else filled)
    _Turning(own, like, stride).run(source, target, features)
    own.finish()
    return own.function


class _Turning:
    def __init__(self, code: Code, panel: Panel, stride: Value) -> None:
        self.code, self.panel, self.numbers, self.stride = code, panel, panel.numbers, stride

    def run(self, source: Value, target: Value, features: Value) -> None:
        """As many features as a unit has at a time, side by side in one store a sample."""
        code, unit = self.code, self.panel.unit
        with code.loop(0, features, unit) as some:
            left = code.sub(features, some.index)
            rest = code.floats(source, code.mul(some.index, self.panel.width))
            there = self.numbers.at(code, target, some.index)
            with code.ir.if_else(code.less(left, unit)) as (fewer, whole):
                with whole:
                    self._side_by_side(rest, there, None)
                with fewer:
                    self._side_by_side(rest, there, left)

    def _side_by_side(self, source: Value, target: Value, left: Value | None) -> None:
        """The features of a unit, or those that are `left`, of all samples of the panel."""
        code, panel = self.code, self.panel
        mask = None if left is None else Mask.of(code, left, self.numbers, panel.lanes)
        with code.loop(0, panel.vectors - (panel.filled is not None)) as unit:
            for sample, words in self._samples(source, unit.index, left):
                self.numbers.put_words(code, words, self._at(target, unit.index, sample), mask)
        if panel.filled is not None:
            last = code.integer(panel.vectors - 1)
            for sample, words in self._samples(source, last, left):
                with code.when(code.less(code.integer(sample), panel.filled)):
                    self.numbers.put_words(code, words, self._at(target, last, sample), mask)

    def _samples(self, source: Value, unit: Value, left: Value | None) -> list[tuple[int, Value]]:
        """Which sample of a unit of the batch, and its features, in words."""
        code, lanes, parts = self.code, self.panel.lanes, self.numbers.parts
        # Beyond those that are left the last one is read again: nothing out of bounds.
        rows: list[Value | int] = list(range(self.panel.unit))
        if left is not None:
            rows = [code.minimum(row, code.sub(left, 1)) for row in rows]
        found: list[tuple[int, Value]] = []
        for part in range(parts):
            column = code.floats(source, code.mul(code.add(code.mul(unit, parts), part), lanes))
            sums = [code.load(code.floats(column, code.mul(row, self.panel.width)), lanes) for row in rows]
            words = [self.numbers.beside(code, sums[row : row + parts], lanes) for row in range(0, len(sums), parts)]
            found += zip(self.numbers.places(part, lanes), code.transpose(words, lanes), strict=True)
        return found

    def _at(self, target: Value, unit: Value, sample: int) -> Value:
        code = self.code
        row = code.mul(code.add(code.mul(unit, self.panel.unit), sample), self.stride)
        return self.numbers.at(code, target, row)


__all__ = ["Resting", "Turned"]
