"""``dX = W^T dY`` of sixteen rows that share their columns, in tiles: sixteen kept columns at a time, by sixteen samples."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit import amx
from pollard.kernels.code.emit.amx_gather import COLUMN, sixteen
from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import zipped
from pollard.kernels.code.emit.panels import Panel, panel_module
from pollard.kernels.code.emit.rows import column_of
from pollard.kernels.code.emit.scatter import ARGUMENTS, Scatter
from pollard.kernels.code.emit.tiles import Tile
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# Values of sixteen columns are a tile as they lie, half as wide as others: a row group has sixteen products to add, or eight pairs.
PAIRS = amx.ROWS // 2
SUMS, LEFT, RIGHT = (0, 1, 2), 3, (4, 5, 6, 7)
SHAPES = [amx.WHOLE] * 3 + [(amx.ROWS, COLUMN)] + [(PAIRS, amx.LINE)] * 4


def scatter(spec: KernelSpec) -> ir.Module:
    """The module; a unit of work is a panel of the batch by a chunk of tiles of columns."""

    def work(code: Code, arguments: Arguments, panel: Panel, part: tuple[Value, Value]) -> None:
        _Scatter(code, spec, arguments, panel).run(*part)

    return panel_module(spec, ARGUMENTS, work, tiles=SHAPES)


class _Scatter(Scatter):
    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, panel: Panel) -> None:
        super().__init__(code, spec, arguments, panel)
        self.room = code.room(panel.count * amx.TILE, align=amx.LINE)  # of pairs, then of products
        self.rest = code.room(amx.TILE // 2, align=amx.LINE)

    def row_group(self, _: Tile, group: Value, grains: tuple[Value, Value]) -> None:
        """What all sixteen rows of `group` add to sixteen of its kept columns at a time."""
        code, count = self.code, self.panel.count
        self._hold(group)
        first, last = (code.mul(grain, self.spec.columns) for grain in grains)
        with code.loop(first, last, amx.ROWS) as block:
            left = code.minimum(code.sub(last, block.index), amx.ROWS)
            source = code.offset(self.arguments["values"], code.mul(block.index, COLUMN))
            amx.load(code, LEFT, sixteen(code, (source, left), amx.ROWS, self.rest), COLUMN)
            for tile in range(count):
                sums = SUMS[tile % len(SUMS)]
                amx.clear(code, sums)
                amx.multiply(code, sums, LEFT, RIGHT[tile])
                amx.store(code, sums, self._tile(tile))
            with code.loop(0, left) as each:
                self._add(each.index, column_of(code, self.spec, self.arguments, code.add(block.index, each.index)))

    def _tile(self, number: int) -> Value:
        return self.code.offset(self.room, number * amx.TILE)

    def _hold(self, group: Value) -> None:
        """Rows of dY, zipped two by two, in tiles until the next row group."""
        code = self.code
        for pair in range(PAIRS):
            rows = (self.panel.words(self._upstream(group, 2 * pair + each), masked=False) for each in (1, 0))
            halves = [half for units in zip(*rows, strict=True) for half in zipped(code, *units)]
            for tile, half in enumerate(halves):
                code.store(half, code.offset(self._tile(tile), pair * amx.LINE))
        for tile in range(self.panel.count):
            amx.load(code, RIGHT[tile], self._tile(tile))

    def _add(self, row: Value, column: Value) -> None:
        code, lanes = self.code, self.lanes
        for tile, there in enumerate(self.places(column)):
            products = code.load(code.offset(self._tile(tile), code.mul(row, amx.LINE)), lanes)
            code.store(code.ir.fadd(code.load(there, lanes), products), there)


__all__ = ["ARGUMENTS", "scatter"]
