"""Dot products on the pattern only: of as many grains at a time as fill a vector, then one transposing reduction."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.simd import I32, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

FEWEST = 4  # dot products that are reduced at a time


class Dots(ABC):
    """A block of rows of one row group, from row `offset` on: as many grains at a time as make the dot products of the spec.

    A subclass says what is multiplied. The argument `columns` is that of W; products go to `values`.
    """

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, offset: int, values: Value) -> None:
        self.code, self.spec, self.arguments, self.offset = code, spec, arguments, offset
        self.values, self.lanes = values, TARGETS[spec.isa].lanes

    @abstractmethod
    def sums(self, columns: list[Value]) -> list[Value]:
        """Of each of these columns the products with each row of the block, a vector of partial sums each."""

    def run(self, grains: tuple[Value, Value], adds: Value) -> None:
        """The dot products of grains ``start:end``, each of one column, written to the values, or added where `adds` holds."""
        code, (start, end), count = self.code, grains, self.spec.dots // self.spec.block
        with code.loop(start, code.sub(end, count - 1), count) as whole:
            positions = [code.add(whole.index, c) for c in range(count)]
            self._store(self._dots(positions), whole.index, None, adds)
        if count > 1:
            with code.when(code.less(whole.index, end)):
                self._rest((whole.index, end), count, adds)

    def _rest(self, grains: tuple[Value, Value], count: int, adds: Value) -> None:
        """Those of fewer grains than `count`: half as many at a time, where that is enough."""
        code, (start, end), half = self.code, grains, count // 2
        if half * self.spec.block < FEWEST:
            self._repeating(grains, count, adds)
            return
        with code.ir.if_else(code.less(code.add(start, half), end)) as (many, few):
            with many:
                self._repeating(grains, count, adds)
            with few:
                self._rest(grains, half, adds)

    def _repeating(self, grains: tuple[Value, Value], count: int, adds: Value) -> None:
        # The last grain is repeated, and what it repeats is not stored.
        code, (start, end) = self.code, grains
        positions = [code.minimum(code.add(start, c), code.sub(end, 1)) for c in range(count)]
        self._store(self._dots(positions), start, code.sub(end, start), adds)

    def zeros(self, grains: int) -> list[Value]:
        """The sums of so many grains with each row of the block, before anything is added."""
        return [self.code.zero(self.lanes)] * (grains * self.spec.block)

    def _dots(self, positions: list[Value]) -> Value:
        return self.code.sum_each(self.sums([self._column(position) for position in positions]), self.lanes)

    def _column(self, position: Value) -> Value:
        code, (count, index) = self.code, (self.spec.columns, self.spec.index)
        if count == 1:
            return code.index_at(self.arguments["columns"], position, index)
        grain = code.ir.udiv(position, code.integer(count))
        first = code.mul(code.index_at(self.arguments["columns"], grain, index), count)
        return code.add(first, code.sub(position, code.mul(grain, count)))

    def _store(self, dots: Value, position: Value, count: Value | None, adds: Value) -> None:
        # Lane c * block + r is row r of grain c. A block that is the whole grain lies in one piece.
        code, block = self.code, self.spec.block
        if block == self.spec.rows:
            self._put(dots, code.mul(position, block), None if count is None else code.mul(count, block), adds)
            return
        grains = code.lanes_of(dots) // block
        for c in range(grains):
            piece = code.shuffle(dots, dots, range(c * block, (c + 1) * block))
            place = code.add(code.mul(code.add(position, c), self.spec.rows), self.offset)
            with code.when(code.less(c, code.integer(grains) if count is None else count)):
                self._put(piece, place, None, adds)

    def _put(self, value: Value, place: Value, count: Value | None, adds: Value) -> None:
        """Write `value`, or its first `count` lanes, to `place` of the values."""
        code, values = self.code, NUMBERS[self.spec.values]
        target = values.at(code, self.values, place)
        if self.spec.values == "float32":
            _add(code, value, target, count, adds)
        elif count is None:
            values.store_few(code, value, target)
        else:
            for lane in range(code.lanes_of(value)):
                with code.when(code.less(lane, count)):
                    values.store_few(code, code.ir.extract_element(value, I32(lane)), values.at(code, target, lane))


def _add(code: Code, value: Value, target: Value, count: Value | None, adds: Value) -> None:
    lanes = code.lanes_of(value)
    mask = None if count is None else code.lane_mask(count, lanes)
    before = code.ir.block
    with code.ir.if_then(adds):
        old = code.load(target, lanes) if mask is None else code.masked_load(target, mask, lanes)
        summed = code.ir.fadd(old, value)
        inside = code.ir.block
    result = code.either((value, summed), (before, inside))
    if mask is None:
        code.store(result, target)
    else:
        code.masked_store(result, target, mask, lanes)
