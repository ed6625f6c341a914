"""``Y = W X``: each row of W gathers the rows of X that it keeps, a panel of the batch at a time."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from pollard.kernels.code.emit.batch_first import Resting
from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import zipped, zipped_splats
from pollard.kernels.code.emit.panels import Panel, panel_module
from pollard.kernels.code.emit.rows import Rows
from pollard.kernels.code.emit.tiles import Tile, ask_for_columns, ask_for_values, each_tile, run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# Lower case: pointers; upper case: integers, in elements. What each call gives comes first.
ARGUMENTS = (
    "values", "x", "y", "bias", "resting", "tiles", "columns", "bounds",
    "PASSES", "TILES", "STRIDE", "END", "IN", "LDX", "LDY", "PANELS", "WIDE", "LAST", "CHUNKS", "ROOM", "WIDTH",
)  # fmt: skip


def gather(spec: KernelSpec) -> ir.Module:
    """The module of a gather kernel; a unit of work is a panel of the batch by a chunk of row groups."""

    def work(code: Code, arguments: Arguments, panel: Panel, part: tuple[Value, Value]) -> None:
        _Gather(code, spec, arguments, panel).run(*part)

    return panel_module(spec, ARGUMENTS, work)


class _Gather(Rows):
    """A panel of the batch: where it lies in X and Y, and the walk over row groups."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, panel: Panel) -> None:
        super().__init__(code, spec, arguments)
        self.panel, self.count = panel, panel.count
        self.y = self.numbers.at(code, arguments["y"], panel.start)
        self.rows = (
            Resting(code, spec, panel, arguments["y"], arguments["LDY"], spec.rows) if spec.batch_first else None
        )
        if spec.packed:
            self.x = self.numbers.at(code, arguments["x"], code.mul(panel.start, arguments["IN"]))
            self.ldx = code.integer(panel.width)
        else:
            self.x, self.ldx = self.numbers.at(code, arguments["x"], panel.start), arguments["LDX"]

    def run(self, chunk: Value, turn: Value) -> None:
        """The row groups that `chunk` takes in `turn`."""
        code, arguments = self.code, self.arguments
        self.groups = groups = run_of_groups(code, arguments, chunk, turn)
        if self.spec.rests:
            # A place of its own for each unit of work, as long as the longest run of rows.
            place = code.mul(code.add(code.mul(chunk, arguments["WIDTH"]), self.panel.start), arguments["ROOM"])
            start = code.mul(code.mul(groups[0], self.spec.rows), self.panel.width)
            self.resting = code.floats(arguments["resting"], code.sub(place, start))
        each_tile(code, self.spec, arguments, groups, self.row_group)

    def row_group(self, tile: Tile, group: Value, grains: tuple[Value, Value]) -> None:
        """Side by side in the end, where the result is batch-first."""
        if self.rows:
            with self.code.when(tile.is_last):
                self.rows.ask(self.code.mul(group, self.spec.rows), self.spec.rows)
        super().row_group(tile, group, grains)
        if self.rows:
            code, following = self.code, self.code.add(group, 1)
            with code.when(tile.is_last):
                self.rows.flush(code.mul(following, self.spec.rows), code.equal(following, self.groups[1]))

    def put(self, tile: Tile, rows: list[Value], sums: list[list[Value]]) -> None:
        """To the result, or where they rest until the last tile."""
        code, panel = self.code, self.panel

        def finish() -> None:
            for row, own in zip(rows, sums, strict=True):
                if self.rows:
                    self.rows.put(row, own)
                else:
                    panel.store(own, self._target(row), masked=True)

        if not self.spec.rests:
            finish()
            return
        with code.ir.if_else(tile.is_last) as (last, others):
            with last:
                finish()
            with others:
                for row, own in zip(rows, sums, strict=True):
                    panel.put_to_rest(own, self._resting(row))

    def left(self, row: Value) -> list[Value]:
        """From there."""
        if self.spec.rests:
            return self.panel.rest(self._resting(row))
        return self.panel.load(self._target(row), masked=True)

    def _target(self, row: Value) -> Value:
        return self.numbers.at(self.code, self.y, self.code.mul(row, self.arguments["LDY"]))

    def _resting(self, row: Value) -> Value:
        return self.code.floats(self.resting, self.code.mul(row, self.panel.width))

    def ask(self, first: Value, count: int, offset: int) -> None:
        """Once for all blocks of the rows of a grain. Where single weights are multiplied one by one, asking takes as long as waiting."""
        single = self.spec.rows * self.spec.columns == 1
        if offset == 0 and (self.spec.pairs or not single):
            ask_for_values(self.code, self.spec, self.arguments, first, count)
        if single and self.spec.pairs:
            ask_for_columns(self.code, self.spec, self.arguments, first, count)

    def accumulate(self, grains: tuple[Value, Value], offset: int, sums: list[Value]) -> list[Value]:
        """In chains, where there are several."""
        start, end = grains
        if self.spec.chains > 1:
            start, sums = self._in_chains(grains, offset, sums)
        return super().accumulate((start, end), offset, sums)

    def _in_chains(self, grains: tuple[Value, Value], offset: int, sums: list[Value]) -> tuple[Value, list[Value]]:
        """As many grains as there are chains at a time, each added to sums of its own; where that ends, and all sums added."""
        code, (chains, width) = self.code, (self.spec.chains, len(sums))
        fresh = [code.zero(self.panel.lanes)] * width
        with code.loop(grains[0], code.sub(grains[1], chains - 1), chains, sums + fresh * (chains - 1)) as several:
            following = []
            for chain in range(chains):
                own = several.carried[chain * width : (chain + 1) * width]
                following += self.grains(code.add(several.index, chain), 1, offset, own)
            several.carry(following)
        total = several.carried[:width]
        for chain in range(1, chains):
            own = several.carried[chain * width : (chain + 1) * width]
            total = [code.ir.fadd(*pair) for pair in zip(total, own, strict=True)]
        return several.index, total

    def several(
        self, column: Callable[[int], Value], count: int, first: Value, offset: int, sums: list[Value]
    ) -> list[Value]:
        """Two at a time, where pairs are multiplied, and the last of an odd number by itself."""
        if not self.spec.pairs or count == 1:
            return super().several(column, count, first, offset, sums)
        sums = self._pair((column(0), column(1)), first, offset, sums)
        if count == 2:
            return sums
        return self.several(lambda each: column(each + 2), count - 2, self.code.add(first, 2), offset, sums)

    def _pair(self, columns: tuple[Value, Value], first: Value, offset: int, sums: list[Value]) -> list[Value]:
        """`sums` and the products of the first column, which are added first, and of the second."""
        code, spec = self.code, self.spec
        units = [self.panel.words(self._row(column), masked=not spec.packed) for column in columns]
        vectors = [half for pair in zip(*units, strict=True) for half in zipped(code, *pair)]
        place = code.add(code.mul(first, spec.rows), offset)
        above = self.values.at(code, self.arguments["values"], place)
        weights = zipped_splats(code, above, self.values.at(code, above, spec.rows), spec.block, self.lanes)
        pairs = [(weight, vector) for weight in weights for vector in vectors]
        return [code.add_pairs(*pair, total) for pair, total in zip(pairs, sums, strict=True)]

    def vectors(self, column: Value) -> list[Value]:
        """The row of X that it names, in the panel."""
        return self.panel.load(self._row(column), masked=not self.spec.packed)

    def _row(self, column: Value) -> Value:
        return self.numbers.at(self.code, self.x, self.code.mul(column, self.ldx))
