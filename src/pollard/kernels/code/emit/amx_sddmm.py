"""``dW`` on the pattern, of sixteen rows that share their columns, in tiles: by sixteen kept columns, over 32 samples at a time."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from pollard.kernels.code.emit import amx
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS, Mask
from pollard.kernels.code.emit.rows import column_of
from pollard.kernels.code.emit.sddmm import ARGUMENTS, STEP
from pollard.kernels.code.emit.tiles import each_tile, run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

SUMS, LEFT, RIGHT = 0, 1, 2
STEPS = STEP // amx.DEEP


def sddmm(spec: KernelSpec) -> ir.Module:
    """The module; a unit of work is a chunk of row groups."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        _Sddmm(code, spec, arguments).run(run_of_groups(code, arguments, *work))

    return kernel_module(ARGUMENTS, unit, x86=True, tiles=[amx.WHOLE] * 3)


class _Sddmm:
    """A few samples at a time: rows of dY in pairs of them, held while the kept columns are walked."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments) -> None:
        self.code, self.spec, self.arguments = code, spec, arguments
        self.lanes, self.numbers, self.values = TARGETS[spec.isa].lanes, NUMBERS[spec.numbers], NUMBERS[spec.values]
        self.left, self.right = (code.room(STEPS * amx.TILE, align=amx.LINE) for _ in range(2))
        self.sums = code.room(amx.TILE, align=amx.LINE)

    def run(self, groups: tuple[Value, Value]) -> None:
        """These row groups, over the batch in steps."""
        code, batch = self.code, self.arguments["BATCH"]
        with code.loop(0, batch, STEP) as step:
            samples = step.index, code.minimum(code.add(step.index, STEP), batch)
            each_tile(
                code, self.spec, self.arguments, groups,
                lambda _, group, grains: self._row_group(group, grains, samples),
            )  # fmt: skip

    def _row_group(self, group: Value, grains: tuple[Value, Value], samples: tuple[Value, Value]) -> None:
        code, spec = self.code, self.spec
        self._hold(group, samples)
        first, last = (code.mul(grain, spec.columns) for grain in grains)
        with code.loop(first, last, amx.ROWS) as block:
            count = code.minimum(code.sub(last, block.index), amx.ROWS)
            with code.loop(0, count) as each:
                column = column_of(code, spec, self.arguments, code.add(block.index, each.index))
                self._copy(each.index, column, samples)
            amx.clear(code, SUMS)
            with code.loop(0, code.sub(samples[1], samples[0]), amx.DEEP) as step:
                place = code.mul(step.index, amx.LINE // 2)
                amx.load(code, LEFT, code.offset(self.left, place))
                amx.load(code, RIGHT, code.offset(self.right, place))
                amx.multiply(code, SUMS, LEFT, RIGHT)
            amx.store(code, SUMS, self.sums)
            with code.loop(0, count) as each:
                self._put(code.add(block.index, each.index), each.index, code.less(0, samples[0]))

    def _hold(self, group: Value, samples: tuple[Value, Value]) -> None:
        """Of sixteen rows of dY words of two samples, which become neighbours."""
        code = self.code
        rows = [code.add(code.mul(group, amx.ROWS), row) for row in range(amx.ROWS)]
        sources = [self.numbers.at(code, self.arguments["dy"], code.mul(row, self.arguments["LDY"])) for row in rows]

        def turn(start: Value, place: Value, mask: Mask | None) -> None:
            words = [self.numbers.words(code, self.numbers.at(code, each, start), self.lanes, mask) for each in sources]
            for pair, own in enumerate(code.transpose(words, self.lanes)):
                code.store(own, code.offset(code.offset(self.right, place), pair * amx.LINE))

        self._each_step(samples, turn)

    def _copy(self, row: Value, column: Value, samples: tuple[Value, Value]) -> None:
        """The row of X that `column` names, to that of the tiles."""
        code = self.code
        source = self.numbers.at(code, self.arguments["x"], code.mul(column, self.arguments["LDX"]))
        target = code.offset(self.left, code.mul(row, amx.LINE))

        def copy(start: Value, place: Value, mask: Mask | None) -> None:
            words = self.numbers.words(code, self.numbers.at(code, source, start), self.lanes, mask)
            code.store(words, code.offset(target, place))

        self._each_step(samples, copy)

    def _each_step(self, samples: tuple[Value, Value], body: Callable[[Value, Value, Mask | None], None]) -> None:
        """``body(sample, place, mask)`` for each 32 samples, whose tile is at `place`; beyond the batch are zeros: 0 times infinity is NaN."""
        code, (first, last) = self.code, samples
        with code.loop(first, code.sub(last, amx.DEEP - 1), amx.DEEP) as step:
            body(step.index, code.mul(code.sub(step.index, first), amx.LINE // 2), None)
        with code.when(code.less(step.index, last)):
            mask = Mask.of(code, code.sub(last, step.index), self.numbers, self.lanes)
            body(step.index, code.mul(code.sub(step.index, first), amx.LINE // 2), mask)

    def _put(self, kept: Value, row: Value, is_later: Value) -> None:
        code = self.code
        place = self.values.at(code, self.arguments["values"], code.mul(kept, amx.ROWS))
        sums = code.load(code.offset(self.sums, code.mul(row, amx.LINE)), self.lanes)
        before = code.ir.block
        with code.ir.if_then(is_later):
            more = code.ir.fadd(self.values.few(code, place, self.lanes), sums)
            inside = code.ir.block
        self.values.store_few(code, code.either((sums, more), (before, inside)), place)


__all__ = ["ARGUMENTS", "sddmm"]
