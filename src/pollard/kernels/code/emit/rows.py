"""Sums over the grains of a block of rows: values broadcast, vectors of a dense operand multiplied and added."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.tiles import over_columns
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# Grains a turn in a long row: an unstructured one is over in a few cycles. In short runs the rest would cost more.
UNROLL = 2


class Rows(ABC):
    """The walk over the grains of a row group; a subclass says which vectors a column brings.

    The arguments `columns` and `values` are those of W. Sums are those of the first row of a block, then of the next.
    """

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments) -> None:
        self.code, self.spec, self.arguments = code, spec, arguments
        self.lanes, self.numbers, self.values = TARGETS[spec.isa].lanes, NUMBERS[spec.numbers], NUMBERS[spec.values]

    @abstractmethod
    def vectors(self, column: Value) -> list[Value]:
        """What `column` of W is multiplied with."""

    def accumulate(self, grains: tuple[Value, Value], offset: int, sums: list[Value], *, unroll: bool) -> list[Value]:
        """`sums` and the products of grains ``start:end``, of the block of rows that is at `offset` of the group."""
        code, spec, (start, end) = self.code, self.spec, grains
        if unroll and spec.block == spec.columns == 1:
            with code.loop(start, code.sub(end, UNROLL - 1), UNROLL, sums) as several:
                several.carry(self.grains(several.index, UNROLL, offset, several.carried))
            start, sums = several.index, several.carried
        with code.loop(start, end, carried=sums) as single:
            single.carry(self.grains(single.index, 1, offset, single.carried))
        return single.carried

    def grains(self, first: Value, count: int, offset: int, sums: list[Value]) -> list[Value]:
        """`sums` and the products of `count` grains."""
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

    def starting_sums(self, rows: list[Value], count: int) -> list[Value]:
        """`count` vectors for each of `rows`: of its bias, or zeros."""
        code = self.code
        if not self.spec.bias:
            return [code.zero(self.lanes)] * (len(rows) * count)
        biases = [self.values.one(code, self.values.at(code, self.arguments["bias"], row)) for row in rows]
        return [code.splat(bias, self.lanes) for bias in biases for _ in range(count)]

    def _weights(self, first: Value, count: int, offset: int) -> list[Value]:
        """Those of a block of rows of `count` columns, kept one after another, from the one that is the `first` of all."""
        code, spec, values = self.code, self.spec, self.values
        together = count if spec.block == spec.rows else 1
        found = []
        for column in range(0, count, together):
            place = code.add(code.mul(code.add(first, column), spec.rows), offset)
            at = values.at(code, self.arguments["values"], place)
            found += values.splats(code, at, together * spec.block, self.lanes)
        return found

    def _column(self, column: Value, weights: list[Value], sums: list[Value]) -> list[Value]:
        pairs = [(weight, vector) for vectors in [self.vectors(column)] for weight in weights for vector in vectors]
        return [self.code.fma(*pair, total) for pair, total in zip(pairs, sums, strict=True)]
