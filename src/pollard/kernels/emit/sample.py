"""``dW[i, j] = <dY[i], X[j]>`` on the pattern only: many dot products at once, then one transposing reduction."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.tiles import Tile, each_tile, run_of_groups
from pollard.kernels.simd import Code, Value
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import TARGETS

# `columns` and `values` are those of W; x is X and dy is dY, both features-first.
ARGUMENTS = (
    "values", "x", "dy", "tiles", "columns", "bounds",
    "PASSES", "TILES", "STRIDE", "END", "BATCH", "LDX", "LDY",
)  # fmt: skip
# Columns of the batch summed before they join the value: a constant, so that the order of additions, and with it every
# bit of the result, does not depend on tuning.
STEP = 256


def sample(spec: KernelSpec) -> ir.Module:
    """The module of a sampling kernel; a unit of work is a chunk of row groups."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        groups = run_of_groups(code, arguments, *work)
        with code.loop(0, arguments["BATCH"], STEP) as step:
            last = code.minimum(code.add(step.index, STEP), arguments["BATCH"])

            def row_group(_: Tile, group: Value, grains: tuple[Value, Value]) -> None:
                for offset in range(0, spec.rows, spec.block):
                    rows = [code.add(code.mul(group, spec.rows), offset + r) for r in range(spec.block)]
                    _Sample(code, spec, arguments, rows, offset).run(grains, (step.index, last))

            each_tile(code, spec, arguments, groups, row_group)

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


class _Sample:
    """A block of rows of one row group: as many grains at a time as make `lanes` dot products."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, rows: list[Value], offset: int) -> None:
        self.code, self.spec, self.arguments, self.offset = code, spec, arguments, offset
        self.lanes = TARGETS[spec.isa].lanes
        self.grains = self.lanes // spec.block
        self.upstream = [code.floats(arguments["dy"], code.mul(row, arguments["LDY"])) for row in rows]

    def run(self, grains: tuple[Value, Value], batch: tuple[Value, Value]) -> None:
        """Values of grains ``start:end``, summed over the batch columns ``first:last``."""
        code, (start, end) = self.code, grains
        with code.loop(start, code.sub(end, self.grains - 1), self.grains) as whole:
            positions = [code.add(whole.index, c) for c in range(self.grains)]
            self._store(self._dots(positions, batch), whole.index, None, batch[0])
        if self.grains == 1:
            return
        with code.when(code.less(whole.index, end)):
            # Too few grains for a block: the last one is repeated, and what it repeats is not stored.
            positions = [code.minimum(code.add(whole.index, c), code.sub(end, 1)) for c in range(self.grains)]
            self._store(self._dots(positions, batch), whole.index, code.sub(end, whole.index), batch[0])

    def _dots(self, positions: list[Value], batch: tuple[Value, Value]) -> Value:
        code, arguments, lanes = self.code, self.arguments, self.lanes
        columns = [code.index_at(arguments["columns"], position) for position in positions]
        inputs = [code.floats(arguments["x"], code.mul(column, arguments["LDX"])) for column in columns]

        def multiply(sums: list[Value], load: Callable[[Value], Value]) -> list[Value]:
            upstream = [load(pointer) for pointer in self.upstream]
            following = []
            for c, pointer in enumerate(inputs):
                vector = load(pointer)
                own = sums[c * len(upstream) : (c + 1) * len(upstream)]
                following += [code.fma(vector, row, total) for row, total in zip(upstream, own, strict=True)]
            return following

        first, last = batch
        with code.loop(first, code.sub(last, lanes - 1), lanes, [code.zero(lanes)] * lanes) as step:
            step.carry(multiply(step.carried, lambda pointer: code.load(code.floats(pointer, step.index), lanes)))
        before, sums = code.ir.block, step.carried
        with code.ir.if_then(code.less(step.index, last)):
            mask = code.lane_mask(code.sub(last, step.index), lanes)
            rest = multiply(sums, lambda pointer: code.masked_load(code.floats(pointer, step.index), mask, lanes))
            inside = code.ir.block
        return code.sum_each([code.either(pair, (before, inside)) for pair in zip(sums, rest, strict=True)], lanes)

    def _store(self, dots: Value, position: Value, count: Value | None, first: Value) -> None:
        # Lane c * block + r is row r of grain c. A block that is the whole grain lies in one piece.
        code, block = self.code, self.spec.block
        if block == self.spec.rows:
            target = code.floats(self.arguments["values"], code.mul(position, block))
            mask = None if count is None else code.lane_mask(code.mul(count, block), self.lanes)
            _put(code, dots, target, mask, first)
            return
        for c in range(self.grains):
            piece = code.shuffle(dots, dots, range(c * block, (c + 1) * block))
            place = code.add(code.mul(code.add(position, c), self.spec.rows), self.offset)
            target = code.floats(self.arguments["values"], place)
            with code.when(code.less(c, code.integer(self.grains) if count is None else count)):
                _put(code, piece, target, None, first)


def _put(code: Code, value: Value, target: Value, mask: Value | None, first: Value) -> None:
    # The first step of the batch writes, later ones add.
    lanes = code.lanes_of(value)
    before = code.ir.block
    with code.ir.if_then(code.less(0, first)):
        old = code.load(target, lanes) if mask is None else code.masked_load(target, mask, lanes)
        summed = code.ir.fadd(old, value)
        inside = code.ir.block
    result = code.either((value, summed), (before, inside))
    if mask is None:
        code.store(result, target)
    else:
        code.masked_store(result, target, mask, lanes)
