"""``dW[i, j] = <dY[i], X[j]>`` on the pattern only: many dot products at once, then one transposing reduction."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS, Mask
from pollard.kernels.code.emit.panels import Panel
from pollard.kernels.code.emit.tiles import Tile, each_tile, run_of_groups
from pollard.kernels.code.simd import I32, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# `columns` and `values` are those of W; x is X and dy is dY, both features-first. Values are in half precision only where the
# batch is a single step: others are added to.
ARGUMENTS = (
    "values", "x", "dy", "tiles", "columns", "bounds",
    "PASSES", "TILES", "STRIDE", "END", "BATCH", "LDX", "LDY",
)  # fmt: skip
# Columns of the batch summed before they join the value: a constant, so that the order of additions, and with it every
# bit of the result, does not depend on tuning.
STEP = 256


def sddmm(spec: KernelSpec) -> ir.Module:
    """The module of a sampling kernel; a unit of work is a chunk of row groups."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        groups = run_of_groups(code, arguments, *work)
        with code.loop(0, arguments["BATCH"], STEP) as step:
            last = code.minimum(code.add(step.index, STEP), arguments["BATCH"])

            def row_group(_: Tile, group: Value, own: tuple[Value, Value]) -> None:
                # Here a grain of several columns is as many grains.
                grains = code.mul(own[0], spec.columns), code.mul(own[1], spec.columns)
                for offset in range(0, spec.rows, spec.block):
                    rows = [code.add(code.mul(group, spec.rows), offset + r) for r in range(spec.block)]
                    _Sddmm(code, spec, arguments, rows, offset).run(grains, (step.index, last))

            each_tile(code, spec, arguments, groups, row_group)

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


class _Sddmm:
    """A block of rows of one row group: as many grains at a time as make the dot products of the spec.

    A batch of few vectors is one panel, and its rows of dY stay in registers. Otherwise it is walked for each few grains.
    """

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, rows: list[Value], offset: int) -> None:
        self.code, self.spec, self.arguments, self.offset = code, spec, arguments, offset
        self.lanes = TARGETS[spec.isa].lanes
        self.grains = spec.dots // spec.block
        self.numbers = NUMBERS[spec.numbers]
        self.upstream = [self.numbers.at(code, arguments["dy"], code.mul(row, arguments["LDY"])) for row in rows]
        filled = code.ir.srem(arguments["BATCH"], code.integer(self.numbers.unit(self.lanes))) if spec.ragged else None
        self.panel = Panel(code, spec, code.integer(0), spec.vectors, filled)
        self.held = [self.panel.load(row, masked=True) for row in self.upstream]

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
        code, arguments = self.code, self.arguments
        inputs = [
            self.numbers.at(code, arguments["x"], code.mul(self._column(position), arguments["LDX"]))
            for position in positions
        ]
        return code.sum_each(self._at_once(inputs) if self.spec.vectors else self._walk(inputs, batch), self.lanes)

    def _column(self, position: Value) -> Value:
        code, (count, index) = self.code, (self.spec.columns, self.spec.index)
        if count == 1:
            return code.index_at(self.arguments["columns"], position, index)
        # A power of two.
        grain = code.ir.lshr(position, code.integer(count.bit_length() - 1))
        first = code.mul(code.index_at(self.arguments["columns"], grain, index), count)
        return code.add(first, code.ir.and_(position, code.integer(count - 1)))

    def _at_once(self, inputs: list[Value]) -> list[Value]:
        sums = [self.code.zero(self.lanes)] * self.spec.dots
        return self._multiply(sums, self.held, [self.panel.load(pointer, masked=True) for pointer in inputs])

    def _walk(self, inputs: list[Value], batch: tuple[Value, Value]) -> list[Value]:
        code, lanes, numbers, unit = self.code, self.lanes, self.numbers, self.panel.unit

        def multiply(sums: list[Value], index: Value, mask: Mask | None) -> list[Value]:
            upstream, loaded = (
                [numbers.load(code, numbers.at(code, pointer, index), lanes, mask) for pointer in each]
                for each in (self.upstream, inputs)
            )
            return self._multiply(sums, upstream, loaded)

        first, last = batch
        with code.loop(first, code.sub(last, unit - 1), unit, [code.zero(lanes)] * self.spec.dots) as step:
            step.carry(multiply(step.carried, step.index, None))
        before, sums = code.ir.block, step.carried
        with code.ir.if_then(code.less(step.index, last)):
            rest = multiply(sums, step.index, Mask.of(code, code.sub(last, step.index), numbers, lanes))
            inside = code.ir.block
        return [code.either(pair, (before, inside)) for pair in zip(sums, rest, strict=True)]

    def _multiply(self, sums: list[Value], upstream: list[list[Value]], inputs: list[list[Value]]) -> list[Value]:
        # Of each row, its vectors one after another.
        for held, loaded in zip(zip(*upstream, strict=True), zip(*inputs, strict=True), strict=True):
            pairs = [(vector, row) for vector in loaded for row in held]
            sums = [self.code.fma(*pair, total) for pair, total in zip(pairs, sums, strict=True)]
        return sums

    def _store(self, dots: Value, position: Value, count: Value | None, first: Value) -> None:
        # Lane c * block + r is row r of grain c. A block that is the whole grain lies in one piece.
        code, block = self.code, self.spec.block
        if block == self.spec.rows:
            self._put(dots, code.mul(position, block), None if count is None else code.mul(count, block), first)
            return
        for c in range(self.grains):
            piece = code.shuffle(dots, dots, range(c * block, (c + 1) * block))
            place = code.add(code.mul(code.add(position, c), self.spec.rows), self.offset)
            with code.when(code.less(c, code.integer(self.grains) if count is None else count)):
                self._put(piece, place, None, first)

    def _put(self, value: Value, place: Value, count: Value | None, first: Value) -> None:
        """Write `value`, or its first `count` lanes, to `place` of the values."""
        code, values = self.code, NUMBERS[self.spec.values]
        target = values.at(code, self.arguments["values"], place)
        if self.spec.values == "float32":
            _add(code, value, target, count, first)
        elif count is None:
            values.store_few(code, value, target)
        else:
            for lane in range(code.lanes_of(value)):
                with code.when(code.less(lane, count)):
                    values.store_few(code, code.ir.extract_element(value, I32(lane)), values.at(code, target, lane))


def _add(code: Code, value: Value, target: Value, count: Value | None, first: Value) -> None:
    # The first step of the batch writes, later ones add.
    lanes = code.lanes_of(value)
    mask = None if count is None else code.lane_mask(count, lanes)
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
