"""``Y = W X`` of sixteen rows that share their columns, in tiles: 32 kept columns at a time, by sixteen samples."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit import amx
from pollard.kernels.code.emit.activations import activated
from pollard.kernels.code.emit.batch_first import Resting
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS, dense, zipped
from pollard.kernels.code.emit.panels import Panel, each_kind
from pollard.kernels.code.emit.rows import column_of
from pollard.kernels.code.emit.tiles import ask_for
from pollard.kernels.code.simd import I16, I32, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# A turn takes SPAN panels of the batch. `laid` has room for ROOM tiles of each chunk. `permutation`: where each of the GRAINS of the
# transpose of W stands in W, where that is taken by columns; rows are columns of W then, and X is dY.
ARGUMENTS = (
    "values", "x", "y", "bias", "laid", "pointers", "columns", "bounds", "permutation",
    "PASSES", "SPAN", "IN", "LDX", "LDY", "PANELS", "WIDE", "LAST", "ROOM", "GRAINS",
)  # fmt: skip
MOST = 2  # vectors of a panel: of each there are two tiles of sums
LEFT, RIGHT = 2 * MOST, (5, 6, 7)
COLUMN = 2 * amx.ROWS  # bytes of the values of a column
GRAIN = amx.ROWS * COLUMN  # of those of sixteen
SOON = 16  # grains


def gather(spec: KernelSpec) -> ir.Module:
    """The module; a unit of work is a chunk of row groups, by some panels at a time: what X has in them stays in cache for all groups."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        chunk, turn = work
        first, last = (code.index_at(arguments["bounds"], code.add(chunk, end)) for end in (0, 1))
        start = code.mul(turn, arguments["SPAN"])
        panels = start, code.minimum(code.add(start, arguments["SPAN"]), arguments["PANELS"])
        rest, together = code.room(amx.TILE, align=amx.LINE), groups_at_once(spec)
        laid = _tiles_of(code, arguments, arguments["laid"], code.mul(chunk, together))
        with code.loop(first, last, together) as some:
            groups = some.index, code.minimum(code.add(some.index, together), last)
            with code.loop(*groups) as group:
                lay = _lay_turned if spec.permuted else _lay
                place = _tiles_of(code, arguments, laid, code.sub(group.index, groups[0]))
                lay(code, arguments, _kept(code, spec, arguments, group.index), place, rest)
            with code.loop(*panels) as each:
                each_kind(
                    code, spec, each.index, (arguments["PANELS"], arguments["WIDE"], arguments["LAST"]),
                    lambda panel: _Gather(code, spec, arguments, panel).run(groups, laid),
                )  # fmt: skip

    return kernel_module(ARGUMENTS, unit, x86=True, tiles=[amx.WHOLE] * 8)


def groups_at_once(spec: KernelSpec) -> int:
    """How many row groups are multiplied by a panel before the next one: as many as are written side by side."""
    return max(1, dense(spec).unit(TARGETS[spec.isa].lanes) // amx.ROWS) if spec.batch_first else 1


def _tiles_of(code: Code, arguments: Arguments, laid: Value, group: Value) -> Value:
    return code.offset(laid, code.mul(code.mul(group, arguments["ROOM"]), amx.TILE))


def _kept(code: Code, spec: KernelSpec, arguments: Arguments, group: Value) -> tuple[Value, Value]:
    """The first of the kept columns of `group`, and the end."""
    first, last = (code.index_at(arguments["pointers"], code.add(group, end)) for end in (0, 1))
    return code.mul(first, spec.columns), code.mul(last, spec.columns)


def _lay(code: Code, arguments: Arguments, kept: tuple[Value, Value], laid: Value, rest: Value) -> None:
    """The values of a row group, in tiles: those of 32 kept columns, row by row, then of the next; zeros where there are no more."""
    source, count = code.offset(arguments["values"], code.mul(kept[0], COLUMN)), code.sub(kept[1], kept[0])
    halves, rows = ir.VectorType(I16, 2 * amx.ROWS), amx.ROWS
    neighbours = [place + column for place in range(rows) for column in (0, rows)]
    with code.loop(0, count, amx.DEEP) as step:
        place = code.mul(step.index, COLUMN)
        ask_for(code, code.offset(source, place), amx.TILE)
        columns = sixteen(code, (code.offset(source, place), code.sub(count, step.index)), amx.DEEP, rest)
        words = []
        for pair in range(amx.DEEP // 2):
            both = code.ir.bitcast(code.load(code.offset(columns, pair * amx.LINE), rows), halves)
            words.append(code.ir.bitcast(code.shuffle(both, both, neighbours), ir.VectorType(I32, rows)))
        for row, own in enumerate(code.transpose(words, rows)):
            code.store(own, code.offset(laid, code.add(place, row * amx.LINE)))


def _lay_turned(code: Code, arguments: Arguments, kept: tuple[Value, Value], laid: Value, _: Value) -> None:
    """Of the transpose, two grains a tile: their columns are its rows as they lie."""
    first, last = (code.ir.udiv(end, code.integer(amx.ROWS)) for end in kept)

    def place(grain: Value) -> Value:
        number = code.sub(grain, first)
        tile, side = code.ir.lshr(number, code.integer(1)), code.ir.and_(number, code.integer(1))
        return code.offset(laid, code.add(code.mul(tile, amx.TILE), code.mul(side, COLUMN)))

    def source(grain: Value) -> Value:
        return code.offset(arguments["values"], code.mul(code.index_at(arguments["permutation"], grain), GRAIN))

    with code.loop(first, last) as each:
        # They are everywhere: none comes after another.
        soon = source(code.minimum(code.add(each.index, SOON), code.sub(arguments["GRAINS"], 1)))
        for line in range(0, GRAIN, amx.LINE):
            code.prefetch(code.offset(soon, line))
        here, there = source(each.index), place(each.index)
        for row in range(amx.ROWS):
            column = code.load(code.offset(here, row * COLUMN), COLUMN // 4)
            code.store(column, code.offset(there, row * amx.LINE))
    with code.when(code.equal(code.ir.and_(code.sub(last, first), code.integer(1)), 1)):
        there = place(last)
        for row in range(amx.ROWS):
            code.store(code.zero(COLUMN // 4), code.offset(there, row * amx.LINE))


def sixteen(code: Code, columns: tuple[Value, Value], most: int, rest: Value) -> Value:
    """Where `most` columns of sixteen values are to be read: where they are, or where fewer are left, a copy in `rest`, with zeros behind.

    columns: where they begin, and how many are left.
    """
    source, left = columns
    fewer = code.less(left, most)
    with code.when(fewer):
        for line in range(0, most * COLUMN, amx.LINE):
            code.store(code.zero(amx.LINE // 4), code.offset(rest, line))
        with code.loop(0, left) as column:
            place = code.mul(column.index, COLUMN)
            code.store(code.load(code.offset(source, place), COLUMN // 4), code.offset(rest, place))
    return code.ir.select(fewer, rest, source)


class _Gather:
    """A panel of the batch: where it lies in X and Y, and the products of a row group."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, panel: Panel) -> None:
        self.code, self.spec, self.arguments, self.panel = code, spec, arguments, panel
        self.lanes, self.numbers, self.count = TARGETS[spec.isa].lanes, dense(spec), panel.count
        self.room = code.room(self.count * amx.TILE, align=amx.LINE)  # of pairs, and at the end of sums
        start, self.ldx = panel.start, arguments["LDX"]
        if spec.packed:
            start, self.ldx = code.mul(start, arguments["IN"]), code.integer(panel.width)
        self.x = self.numbers.at(code, arguments["x"], start)
        self.y = self.numbers.at(code, arguments["y"], panel.start)
        self.rows = Resting(code, spec, panel, arguments["y"], arguments["LDY"], amx.ROWS) if spec.batch_first else None

    def run(self, groups: tuple[Value, Value], laid: Value) -> None:
        """All rows of `groups`, whose values are `laid` out one group after another."""
        code, (first, last) = self.code, groups
        with code.loop(first, last) as each:
            if self.rows:
                self.rows.ask(code.mul(each.index, amx.ROWS), amx.ROWS)
            kept = _kept(code, self.spec, self.arguments, each.index)
            self.multiply(each.index, kept, _tiles_of(code, self.arguments, laid, code.sub(each.index, first)))
        if self.rows:
            self.rows.flush(code.mul(last, amx.ROWS), code.equal(0, 0))

    def multiply(self, group: Value, kept: tuple[Value, Value], laid: Value) -> None:
        """All sixteen rows of `group`, of whose kept columns 32 are multiplied at a time."""
        code, (first, last) = self.code, kept
        for sums in range(self.count):
            amx.clear(code, sums)
        with code.loop(0, code.sub(last, first), amx.DEEP) as step:
            self._pairs(code.add(first, step.index), last)
            amx.load(code, LEFT, code.offset(laid, code.mul(step.index, COLUMN)))
            for sums in range(self.count):
                right = RIGHT[sums % len(RIGHT)]
                amx.load(code, right, self._tile(sums))
                amx.multiply(code, sums, LEFT, right)
        self._finish(group)

    def _tile(self, number: int) -> Value:
        return self.code.offset(self.room, number * amx.TILE)

    def _pairs(self, first: Value, last: Value) -> None:
        """Rows of X of the kept columns from `first` on, zipped two by two; zeros where there are no more: 0 times another's infinity is NaN."""
        code = self.code
        left = code.minimum(code.sub(last, first), amx.DEEP)
        whole = code.ir.lshr(left, code.integer(1))
        with code.loop(0, whole) as pair:
            one = code.add(first, code.mul(pair.index, 2))
            column = self._column(one)
            # Columns of a grain are neighbours.
            other = code.add(column, 1) if self.spec.columns % 2 == 0 else self._column(code.add(one, 1))
            self._put(pair.index, self._words(column), self._words(other))
        with code.when(code.less(left, amx.DEEP)):
            nothing = [ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)] * self.panel.vectors
            with code.loop(whole, amx.ROWS) as empty:
                self._put(empty.index, nothing, nothing)
            with code.when(code.equal(code.ir.and_(left, code.integer(1)), 1)):
                self._put(whole, self._words(self._column(code.sub(last, 1))), nothing)

    def _column(self, kept: Value) -> Value:
        return column_of(self.code, self.spec, self.arguments, kept)

    def _words(self, column: Value) -> list[Value]:
        row = self.numbers.at(self.code, self.x, self.code.mul(column, self.ldx))
        return self.panel.words(row, masked=not self.spec.packed)

    def _put(self, row: Value, first: list[Value], second: list[Value]) -> None:
        code = self.code
        halves = [half for pair in zip(second, first, strict=True) for half in zipped(code, *pair)]
        for tile, half in enumerate(halves):
            code.store(half, code.offset(self._tile(tile), code.mul(row, amx.LINE)))

    def _finish(self, group: Value) -> None:
        code, spec, lanes, values = self.code, self.spec, self.lanes, NUMBERS[self.spec.values]
        for sums in range(self.count):
            amx.store(code, sums, self._tile(sums))
        with code.loop(0, amx.ROWS) as each:
            row, place = code.add(code.mul(group, amx.ROWS), each.index), code.mul(each.index, amx.LINE)
            own = [code.load(code.offset(self._tile(sums), place), lanes) for sums in range(self.count)]
            if spec.bias:
                bias = code.splat(values.one(code, values.at(code, self.arguments["bias"], row)), lanes)
                own = [code.ir.fadd(total, bias) for total in own]
            own = activated(code, spec.activation, own, spec.numbers)
            if self.rows:
                self.rows.put(row, own)
            else:
                target = self.numbers.at(code, self.y, code.mul(row, self.arguments["LDY"]))
                self.panel.store(own, target, masked=True)
