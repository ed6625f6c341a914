"""``Y = W X``: each row of W gathers the rows of X that it keeps, a panel of the batch at a time."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.panels import Panel, panel_module
from pollard.kernels.code.emit.tiles import Tile, each_tile, run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# Lower case: pointers; upper case: integers, in elements. What each call gives comes first.
ARGUMENTS = (
    "values", "x", "y", "bias", "tiles", "columns", "bounds",
    "PASSES", "TILES", "STRIDE", "END", "IN", "LDX", "LDY", "PANELS", "WIDE", "LAST", "CHUNKS",
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
        self.y = code.floats(arguments["y"], panel.start)
        if spec.packed:
            self.x = code.floats(arguments["x"], code.mul(panel.start, arguments["IN"]))
            self.ldx = code.integer(panel.width)
        else:
            self.x, self.ldx = code.floats(arguments["x"], panel.start), arguments["LDX"]

    def run(self, chunk: Value, turn: Value) -> None:
        """The row groups that `chunk` takes in `turn`."""
        code, arguments = self.code, self.arguments
        groups = run_of_groups(code, arguments, chunk, turn)
        each_tile(code, self.spec, arguments, groups, self._row_group)

    def _row_group(self, tile: Tile, group: Value, grains: tuple[Value, Value]) -> None:
        code, spec, panel = self.code, self.spec, self.panel
        for offset in range(0, spec.rows, spec.block):
            rows = [code.add(code.mul(group, spec.rows), offset + r) for r in range(spec.block)]
            targets = [code.floats(self.y, code.mul(row, self.arguments["LDY"])) for row in rows]
            sums = self._accumulate(grains, offset, self._start(tile, rows, targets))
            if spec.relu:
                sums = [code.ir.select(tile.is_last, code.relu(total, panel.lanes), total) for total in sums]
            for r, target in enumerate(targets):
                panel.store(sums[r * panel.vectors : (r + 1) * panel.vectors], target, masked=True)

    def _start(self, tile: Tile, rows: list[Value], targets: list[Value]) -> list[Value]:
        # The first tile starts from the bias or zero, the others from what the tile before left in Y.
        code, spec, panel = self.code, self.spec, self.panel
        if spec.bias:
            biases = [code.load(code.floats(self.arguments["bias"], row), 1) for row in rows]
            fresh = [code.splat(bias, panel.lanes) for bias in biases for _ in range(panel.vectors)]
        else:
            fresh = [code.zero(panel.lanes)] * (spec.block * panel.vectors)
        if not spec.tiled:
            return fresh
        before = code.ir.block
        with code.ir.if_then(code.ir.not_(tile.is_first)):
            left = [vector for target in targets for vector in panel.load(target, masked=True)]
            inside = code.ir.block
        return [code.either(pair, (before, inside)) for pair in zip(fresh, left, strict=True)]

    def _accumulate(self, grains: tuple[Value, Value], offset: int, sums: list[Value]) -> list[Value]:
        code, (start, end) = self.code, grains
        if self.spec.block == 1 and not self.spec.tiled:
            with code.loop(start, code.sub(end, UNROLL - 1), UNROLL, sums) as several:
                running = several.carried
                for step in range(UNROLL):
                    running = self._grain(code.add(several.index, step), offset, running)
                several.carry(running)
            start, sums = several.index, several.carried
        with code.loop(start, end, carried=sums) as single:
            single.carry(self._grain(single.index, offset, single.carried))
        return single.carried

    def _grain(self, position: Value, offset: int, sums: list[Value]) -> list[Value]:
        code, spec, panel = self.code, self.spec, self.panel
        column = code.index_at(self.arguments["columns"], position)
        vectors = panel.load(code.floats(self.x, code.mul(column, self.ldx)), masked=not spec.packed)
        weights = code.floats(self.arguments["values"], code.add(code.mul(position, spec.rows), offset))
        following = []
        for r in range(spec.block):
            weight = code.splat(code.load(code.floats(weights, r), 1), panel.lanes)
            own = sums[r * panel.vectors : (r + 1) * panel.vectors]
            following += [code.fma(weight, vector, total) for vector, total in zip(vectors, own, strict=True)]
        return following
