"""``dW[i, j] = <dY[i], X[j]>`` on the pattern only: many dot products at once, then one transposing reduction."""

from __future__ import annotations

from typing import Self

from llvmlite import ir

from pollard.kernels.code.emit.dots import Dots
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS, Mask
from pollard.kernels.code.emit.panels import Panel
from pollard.kernels.code.emit.tiles import Tile, each_tile, run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

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
                    # The first step of the batch writes, later ones add.
                    dots = _Sddmm(code, spec, arguments, offset, arguments["values"])
                    dots.among(rows, (step.index, last)).run(grains, code.less(0, step.index))

            each_tile(code, spec, arguments, groups, row_group)

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


class _Sddmm(Dots):
    """A batch of few vectors is one panel, and its rows of dY stay in registers. Otherwise it is walked for each few grains."""

    def among(self, rows: list[Value], batch: tuple[Value, Value]) -> Self:
        """Of these rows of dY, over the columns ``first:last`` of the batch."""
        code, spec, arguments = self.code, self.spec, self.arguments
        self.batch, self.numbers = batch, NUMBERS[spec.numbers]
        self.upstream = [self.numbers.at(code, arguments["dy"], code.mul(row, arguments["LDY"])) for row in rows]
        filled = code.ir.srem(arguments["BATCH"], code.integer(self.numbers.unit(self.lanes))) if spec.ragged else None
        self.panel = Panel(code, spec, code.integer(0), spec.vectors, filled)
        self.held = [self._factors(self.panel.words(row, masked=True)) for row in self.upstream]
        return self

    def _factors(self, words: list[Value]) -> list[Value]:
        """What is multiplied: words of pairs, or their numbers, in the order in which the instruction for pairs adds them."""
        if self.spec.pairs:
            return words
        return [part for each in words for part in reversed(self.numbers.widened(self.code, each, self.lanes))]

    def sums(self, columns: list[Value]) -> list[Value]:
        """Summed over those columns of the batch."""
        code, arguments = self.code, self.arguments
        inputs = [self.numbers.at(code, arguments["x"], code.mul(column, arguments["LDX"])) for column in columns]
        return self._at_once(inputs) if self.spec.vectors else self._walk(inputs)

    def _at_once(self, inputs: list[Value]) -> list[Value]:
        loaded = [self._factors(self.panel.words(each, masked=True)) for each in inputs]
        return self._multiply(self.zeros(len(inputs)), self.held, loaded)

    def _walk(self, inputs: list[Value]) -> list[Value]:
        code, lanes, numbers, unit = self.code, self.lanes, self.numbers, self.panel.unit

        def multiply(sums: list[Value], index: Value, mask: Mask | None) -> list[Value]:
            upstream, loaded = (
                [self._factors([numbers.words(code, numbers.at(code, row, index), lanes, mask)]) for row in each]
                for each in (self.upstream, inputs)
            )
            return self._multiply(sums, upstream, loaded)

        first, last = self.batch
        with code.loop(first, code.sub(last, unit - 1), unit, self.zeros(len(inputs))) as step:
            step.carry(multiply(step.carried, step.index, None))
        before, sums = code.ir.block, step.carried
        with code.ir.if_then(code.less(step.index, last)):
            rest = multiply(sums, step.index, Mask.of(code, code.sub(last, step.index), numbers, lanes))
            inside = code.ir.block
        return [code.either(pair, (before, inside)) for pair in zip(sums, rest, strict=True)]

    def _multiply(self, sums: list[Value], upstream: list[list[Value]], inputs: list[list[Value]]) -> list[Value]:
        # Of each row, its vectors one after another.
        add = self.code.add_pairs if self.spec.pairs else self.code.fma
        for held, loaded in zip(zip(*upstream, strict=True), zip(*inputs, strict=True), strict=True):
            pairs = [(vector, row) for vector in loaded for row in held]
            sums = [add(*pair, total) for pair, total in zip(pairs, sums, strict=True)]
        return sums
