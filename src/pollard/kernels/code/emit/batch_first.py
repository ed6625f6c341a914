"""Results whose rows of the batch are contiguous: what kernels sum feature by feature is turned on its way to memory."""

from __future__ import annotations

from pollard.kernels.code.emit.numbers import Mask, Numbers, dense
from pollard.kernels.code.emit.panels import Panel
from pollard.kernels.code.emit.tiles import LINE
from pollard.kernels.code.simd import I64, POINTER, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS


class Turned:
    """A panel of the batch in such a result `y`, whose rows are `stride` numbers apart."""

    def __init__(self, code: Code, spec: KernelSpec, panel: Panel, y: Value, stride: Value) -> None:
        self.code, self.panel, self.numbers, self.stride = code, panel, panel.numbers, stride
        self._first, self._turn = self.numbers.at(code, y, code.mul(panel.start, stride)), _turning(code, spec)

    def write(self, source: Value, features: tuple[Value, Value]) -> None:
        """Write the features from the first to the end, whose sums were put to rest one after another from `source` on.

        As many as a unit has are read at a time: beyond the end too, where the memory has to be there.
        """
        code, panel, (first, end) = self.code, self.panel, features
        target, vectors = self.numbers.at(code, self._first, first), code.integer(panel.vectors)
        filled = code.integer(panel.unit) if panel.filled is None else panel.filled
        code.ir.call(self._turn, [source, target, code.sub(end, first), self.stride, vectors, filled])


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


def _turning(code: Code, spec: KernelSpec) -> Value:
    """The function that turns what is at rest of a panel: apart, so that the registers of the products are their own, and one for all panels."""
    known = code.module.globals.get("turn")
    if known is not None:
        return known
    own = Code(code.module, "turn", [POINTER, POINTER, I64, I64, I64, I64])
    own.function.attributes.add("noinline")
    own.function.linkage = "internal"
    _Turning(own, dense(spec), TARGETS[spec.isa].lanes).run(*own.function.args)
    own.finish()
    return own.function


class _Turning:
    """Squares of a unit of samples by as many features."""

    def __init__(self, code: Code, numbers: Numbers, lanes: int) -> None:
        self.code, self.numbers, self.lanes, self.unit = code, numbers, lanes, numbers.unit(lanes)

    def run(self, source: Value, target: Value, features: Value, stride: Value, vectors: Value, filled: Value) -> None:  # noqa: PLR0917
        """`features` of a panel of so many `vectors`, the last of them `filled`; rows of the target are `stride` numbers apart."""
        code, numbers, unit = self.code, self.numbers, self.unit
        width, last = code.mul(vectors, unit), code.sub(vectors, 1)
        room = code.room(numbers.bytes * unit * unit, align=LINE)
        with code.loop(0, features, unit) as some, code.loop(0, vectors) as each:
            square = code.floats(source, code.add(code.mul(some.index, width), code.mul(each.index, unit)))
            row = code.mul(code.mul(each.index, unit), stride)
            there = numbers.at(code, target, code.add(some.index, row))
            columns = code.minimum(code.sub(features, some.index), unit)
            samples = code.ir.select(code.equal(each.index, last), filled, code.integer(unit))
            whole = code.equal(code.add(columns, samples), 2 * unit)
            # A part of a square goes by where there is room for all of it, so that the square is written out once.
            place, step = (
                code.ir.select(whole, own, other) for own, other in ((there, room), (stride, code.integer(unit)))
            )
            self._turn(square, width, place, step)
            with code.when(code.ir.not_(whole)):
                self._copy(room, there, stride, (samples, columns))

    def _turn(self, source: Value, width: Value, target: Value, stride: Value) -> None:
        code, numbers = self.code, self.numbers
        for part in range(numbers.parts):
            sums, place = list[Value](), code.floats(source, part * self.lanes)
            for _ in range(self.unit):
                sums.append(code.load(place, self.lanes))
                place = code.floats(place, width)
            words = [
                numbers.beside(code, sums[row : row + numbers.parts], self.lanes)
                for row in range(0, self.unit, numbers.parts)
            ]
            for sample, turned in zip(numbers.places(part, self.lanes), code.transpose(words, self.lanes), strict=True):
                numbers.put_words(code, turned, numbers.at(code, target, code.mul(sample, stride)))

    def _copy(self, source: Value, target: Value, stride: Value, size: tuple[Value, Value]) -> None:
        code, numbers, (samples, columns) = self.code, self.numbers, size
        mask = Mask.of(code, columns, numbers, self.lanes)
        with code.loop(0, samples) as sample:
            words = numbers.words(code, numbers.at(code, source, code.mul(sample.index, self.unit)), self.lanes)
            numbers.put_words(code, words, numbers.at(code, target, code.mul(sample.index, stride)), mask)


__all__ = ["Resting", "Turned"]
