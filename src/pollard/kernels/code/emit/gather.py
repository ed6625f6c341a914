"""``Y = W X``: each row of W gathers the rows of X that it keeps, a panel of the batch at a time."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.panels import Panel, panel_module
from pollard.kernels.code.emit.tiles import Tile, each_tile, over_columns, run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# Lower case: pointers; upper case: integers, in elements. What each call gives comes first.
ARGUMENTS = (
    "values", "x", "y", "bias", "resting", "tiles", "columns", "bounds",
    "PASSES", "TILES", "STRIDE", "END", "IN", "LDX", "LDY", "PANELS", "WIDE", "LAST", "CHUNKS", "ROOM", "WIDTH",
)  # fmt: skip
# Grains a turn in a long row: an unstructured one is over in a few cycles. In short runs the rest would cost more.
UNROLL = 2


def gather(spec: KernelSpec) -> ir.Module:
    """The module of a gather kernel; a unit of work is a panel of the batch by a chunk of row groups."""

    def work(code: Code, arguments: Arguments, panel: Panel, part: tuple[Value, Value]) -> None:
        _Gather(code, spec, arguments, panel).run(*part)

    return panel_module(spec, ARGUMENTS, work)


class _Gather:
    """A panel of the batch: where it lies in X and Y, and the walk over row groups."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, panel: Panel) -> None:
        self.code, self.spec, self.arguments, self.panel = code, spec, arguments, panel
        self.numbers, self.values = NUMBERS[spec.numbers], NUMBERS[spec.values]
        self.y = self.numbers.at(code, arguments["y"], panel.start)
        if spec.packed:
            self.x = self.numbers.at(code, arguments["x"], code.mul(panel.start, arguments["IN"]))
            self.ldx = code.integer(panel.width)
        else:
            self.x, self.ldx = self.numbers.at(code, arguments["x"], panel.start), arguments["LDX"]

    def run(self, chunk: Value, turn: Value) -> None:
        """The row groups that `chunk` takes in `turn`."""
        code, arguments = self.code, self.arguments
        groups = run_of_groups(code, arguments, chunk, turn)
        if self.spec.rests:
            # A place of its own for each unit of work, as long as the longest run of rows.
            place = code.mul(code.add(code.mul(chunk, arguments["WIDTH"]), self.panel.start), arguments["ROOM"])
            start = code.mul(code.mul(groups[0], self.spec.rows), self.panel.width)
            self.resting = code.floats(arguments["resting"], code.sub(place, start))
        each_tile(code, self.spec, arguments, groups, self._row_group)

    def _row_group(self, tile: Tile, group: Value, grains: tuple[Value, Value]) -> None:
        code, spec, panel = self.code, self.spec, self.panel
        for offset in range(0, spec.rows, spec.block):
            rows = [code.add(code.mul(group, spec.rows), offset + r) for r in range(spec.block)]
            sums = self._accumulate(grains, offset, self._start(tile, rows))
            if not spec.rests:
                self._finish(tile, rows, sums)
                continue
            with code.ir.if_else(tile.is_last) as (last, others):
                with last:
                    self._finish(tile, rows, sums)
                with others:
                    for row, own in zip(rows, self._by_row(sums), strict=True):
                        panel.put_to_rest(own, self._resting(row))

    def _finish(self, tile: Tile, rows: list[Value], sums: list[Value]) -> None:
        code, panel = self.code, self.panel
        if self.spec.relu:
            sums = [code.ir.select(tile.is_last, code.relu(total, panel.lanes), total) for total in sums]
        for row, own in zip(rows, self._by_row(sums), strict=True):
            panel.store(own, self._target(row), masked=True)

    def _start(self, tile: Tile, rows: list[Value]) -> list[Value]:
        # The first tile starts from the bias or zero, the others from what the tile before left.
        code, spec, panel = self.code, self.spec, self.panel
        if spec.bias:
            biases = [self.values.one(code, self.values.at(code, self.arguments["bias"], row)) for row in rows]
            fresh = [code.splat(bias, panel.lanes) for bias in biases for _ in range(panel.count)]
        else:
            fresh = [code.zero(panel.lanes)] * (spec.block * panel.count)
        if not spec.tiled:
            return fresh
        before = code.ir.block
        with code.ir.if_then(code.ir.not_(tile.is_first)):
            left = [vector for row in rows for vector in self._left(row)]
            inside = code.ir.block
        return [code.either(pair, (before, inside)) for pair in zip(fresh, left, strict=True)]

    def _left(self, row: Value) -> list[Value]:
        if self.spec.rests:
            return self.panel.rest(self._resting(row))
        return self.panel.load(self._target(row), masked=True)

    def _target(self, row: Value) -> Value:
        return self.numbers.at(self.code, self.y, self.code.mul(row, self.arguments["LDY"]))

    def _resting(self, row: Value) -> Value:
        return self.code.floats(self.resting, self.code.mul(row, self.panel.width))

    def _by_row(self, sums: list[Value]) -> list[list[Value]]:
        size = self.panel.count
        return [sums[first : first + size] for first in range(0, len(sums), size)]

    def _accumulate(self, grains: tuple[Value, Value], offset: int, sums: list[Value]) -> list[Value]:
        code, spec, (start, end) = self.code, self.spec, grains
        # Values of half precision are read two at a time in any case.
        if spec.block == spec.columns == spec.chains == 1 and (not spec.tiled or self.values.parts > 1):
            with code.loop(start, code.sub(end, UNROLL - 1), UNROLL, sums) as several:
                several.carry(self._grains(several.index, UNROLL, offset, several.carried))
            start, sums = several.index, several.carried
        elif spec.chains > 1:
            start, sums = self._in_chains(grains, offset, sums)
        with code.loop(start, end, carried=sums) as single:
            single.carry(self._grains(single.index, 1, offset, single.carried))
        return single.carried

    def _in_chains(self, grains: tuple[Value, Value], offset: int, sums: list[Value]) -> tuple[Value, list[Value]]:
        """As many grains as there are chains at a time, each added to sums of its own; where that ends, and all sums added."""
        code, (chains, width) = self.code, (self.spec.chains, len(sums))
        fresh = [code.zero(self.panel.lanes)] * width
        with code.loop(grains[0], code.sub(grains[1], chains - 1), chains, sums + fresh * (chains - 1)) as several:
            following = []
            for chain in range(chains):
                own = several.carried[chain * width : (chain + 1) * width]
                following += self._grains(code.add(several.index, chain), 1, offset, own)
            several.carry(following)
        total = several.carried[:width]
        for chain in range(1, chains):
            own = several.carried[chain * width : (chain + 1) * width]
            total = [code.ir.fadd(*pair) for pair in zip(total, own, strict=True)]
        return several.index, total

    def _grains(self, first: Value, count: int, offset: int, sums: list[Value]) -> list[Value]:
        code, spec = self.code, self.spec
        if spec.columns == 1:
            weights = self._weights(first, count, offset)
            for grain in range(count):
                column = code.index_at(self.arguments["columns"], code.add(first, grain), spec.index)
                sums = self._column(column, weights[grain * spec.block : (grain + 1) * spec.block], sums)
            return sums
        start = code.mul(code.index_at(self.arguments["columns"], first, spec.index), spec.columns)

        def columns(c: Value, some: int, sums: list[Value]) -> list[Value]:
            weights = self._weights(code.add(code.mul(first, spec.columns), c), some, offset)
            for each in range(some):
                own = weights[each * spec.block : (each + 1) * spec.block]
                sums = self._column(code.add(start, code.add(c, each)), own, sums)
            return sums

        return over_columns(code, spec, sums, columns)

    def _weights(self, first: Value, count: int, offset: int) -> list[Value]:
        """Those of a block of rows of `count` columns, kept one after another, from the one that is the `first` of all."""
        code, spec, values, lanes = self.code, self.spec, self.values, self.panel.lanes
        together = count if spec.block == spec.rows else 1
        found = []
        for column in range(0, count, together):
            place = code.add(code.mul(code.add(first, column), spec.rows), offset)
            at = values.at(code, self.arguments["values"], place)
            found += values.splats(code, at, together * spec.block, lanes)
        return found

    def _column(self, column: Value, weights: list[Value], sums: list[Value]) -> list[Value]:
        code, packed = self.code, self.spec.packed
        vectors = self.panel.load(self.numbers.at(code, self.x, code.mul(column, self.ldx)), masked=not packed)
        pairs = [(weight, vector) for weight in weights for vector in vectors]
        return [code.fma(*pair, total) for pair, total in zip(pairs, sums, strict=True)]
