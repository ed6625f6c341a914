"""``dX = W^T dY``: each row of dY is added, weighted, to the rows of dX that its row of W keeps.

Panels of dX are summed side by side in a scratch copy, a tile in cache at a time, and written out at the end.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.batch_first import Turned
from pollard.kernels.code.emit.columns import Columns
from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import zipped, zipped_splats
from pollard.kernels.code.emit.panels import Panel, panel_module
from pollard.kernels.code.emit.tiles import each_tile, run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# Here x is dY, always in panels, and y is dX. A chunk is a run of tiles, which `cuts` holds the beginnings of; every chunk
# takes all row groups. WIDTH is the number of columns of W in a tile.
ARGUMENTS = (
    "values", "x", "y", "scratch", "tiles", "columns", "bounds", "cuts",
    "PASSES", "TILES", "STRIDE", "END", "GROUPS", "IN", "WIDTH", "LDY", "PANELS", "WIDE", "LAST", "CHUNKS",
)  # fmt: skip


def scatter(spec: KernelSpec) -> ir.Module:
    """The module of a scatter kernel; a unit of work is a panel of the batch by a chunk of tiles."""

    def work(code: Code, arguments: Arguments, panel: Panel, part: tuple[Value, Value]) -> None:
        Scatter(code, spec, arguments, panel).run(*part)

    return panel_module(spec, ARGUMENTS, work)


class Scatter(Columns):
    """A panel of the batch: where it lies in dY and dX, and the walk over tiles."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, panel: Panel) -> None:
        super().__init__(code, spec, arguments)
        self.panel = panel
        rows = code.mul(arguments["GROUPS"], spec.rows)
        self.upstream = self.numbers.at(code, arguments["x"], code.mul(panel.start, rows))
        self.scratch = code.floats(arguments["scratch"], code.mul(panel.start, arguments["IN"]))

    def run(self, chunk: Value, turn: Value) -> None:
        """The tiles of `chunk`, for the row groups of `turn`."""
        code, arguments = self.code, self.arguments
        tiles = code.index_at(arguments["cuts"], chunk), code.index_at(arguments["cuts"], code.add(chunk, 1))
        first, last = (code.minimum(code.mul(tile, arguments["WIDTH"]), arguments["IN"]) for tile in tiles)
        groups = run_of_groups(code, arguments, code.integer(0), turn)
        with code.when(code.equal(turn, 0)):
            self._clear(first, last)
        each_tile(code, self.spec, arguments, groups, self.row_group, tiles=tiles)
        with code.when(code.equal(turn, code.sub(arguments["PASSES"], 1))):
            self._copy_out(first, last)

    def vectors(self, group: Value, row: int) -> list[Value]:
        """That row of dY, in the panel."""
        return self.panel.load(self._upstream(group, row), masked=False)

    def held(self, group: Value, offset: int) -> list[list[Value]]:
        """Pairs of rows, where these are multiplied."""
        if not self.spec.pairs:
            return super().held(group, offset)
        units = [self.panel.words(self._upstream(group, offset + r), masked=False) for r in range(self.spec.block)]
        return [
            [half for pair in zip(*rows, strict=True) for half in zipped(self.code, *pair)]
            for rows in zip(units[::2], units[1::2], strict=True)
        ]

    def added(self, at: Value, sums: list[Value], held: list[list[Value]]) -> list[Value]:
        """The products of the first row of a pair are added first."""
        if not self.spec.pairs:
            return super().added(at, sums, held)
        for pair, vectors in enumerate(held):
            above, below = (self.values.at(self.code, at, 2 * pair + each) for each in (0, 1))
            (weights,) = zipped_splats(self.code, above, below, 1, self.lanes)
            sums = [self.code.add_pairs(weights, vector, total) for vector, total in zip(vectors, sums, strict=True)]
        return sums

    def _upstream(self, group: Value, row: int) -> Value:
        place = self.code.mul(self.code.add(self.code.mul(group, self.spec.rows), row), self.panel.width)
        return self.numbers.at(self.code, self.upstream, place)

    def places(self, column: Value) -> list[Value]:
        """In the scratch copy of dX."""
        row = self._row(column)
        return [self.code.floats(row, number * self.lanes) for number in range(self.panel.count)]

    def _row(self, column: Value) -> Value:
        return self.code.floats(self.scratch, self.code.mul(column, self.panel.width))

    def _clear(self, first: Value, last: Value) -> None:
        with self.code.loop(first, last) as each:
            self.panel.put_to_rest([self.code.zero(self.panel.lanes)] * self.panel.count, self._row(each.index))

    def _copy_out(self, first: Value, last: Value) -> None:
        code, panel, y, stride = self.code, self.panel, self.arguments["y"], self.arguments["LDY"]
        if self.spec.batch_first:
            Turned(code, self.spec, panel, y, stride).write(self._row(first), (first, last))
            return
        features = self.numbers.at(code, y, panel.start)
        with code.loop(first, last) as each:
            target = self.numbers.at(code, features, code.mul(each.index, stride))
            panel.store(panel.rest(self._row(each.index)), target, masked=True)
