"""Sums over the grains of a block of rows: values broadcast, vectors of a dense operand multiplied and added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from pollard.kernels.code.emit.activations import activated
from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import NUMBERS, dense
from pollard.kernels.code.emit.tiles import Tile, over_columns
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# Grains a turn in a long row: an unstructured one is over in a few cycles. In short runs the rest would cost more. A pair is two.
UNROLL = 2


class Rows(ABC):
    """The walk over the grains of a row group; a subclass says which vectors a column brings, and where sums go.

    The arguments `columns` and `values` are those of W. Of each row of a block there are `count` vectors of sums.
    """

    count: int

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments) -> None:
        self.code, self.spec, self.arguments = code, spec, arguments
        self.lanes, self.numbers, self.values = TARGETS[spec.isa].lanes, dense(spec), NUMBERS[spec.values]

    @abstractmethod
    def vectors(self, column: Value) -> list[Value]:
        """What `column` of W is multiplied with."""

    @abstractmethod
    def left(self, row: Value) -> list[Value]:
        """What `put` wrote of `row`, in the tile before."""

    @abstractmethod
    def put(self, tile: Tile, rows: list[Value], sums: list[list[Value]]) -> None:
        """Write the sums of each of `rows`."""

    def row_group(self, tile: Tile, group: Value, grains: tuple[Value, Value]) -> None:
        """What grains ``start:end`` of `group`, which lie in `tile`, add to its rows."""
        code, spec = self.code, self.spec
        for offset in range(0, spec.rows, spec.block):
            rows = [code.add(code.mul(group, spec.rows), offset + r) for r in range(spec.block)]
            sums = self.accumulate(grains, offset, self._start(tile, rows))
            if spec.activation:
                sums = self._finished(tile, sums)
            self.put(tile, rows, [sums[first : first + self.count] for first in range(0, len(sums), self.count)])

    def _finished(self, tile: Tile, sums: list[Value]) -> list[Value]:
        """What the activation makes of `sums`, in the last tile."""
        code, spec = self.code, self.spec
        if not spec.tiled:
            return activated(code, spec.activation, sums, spec.numbers)
        before = code.ir.block
        with code.ir.if_then(tile.is_last):
            made = activated(code, spec.activation, sums, spec.numbers)
            inside = code.ir.block
        return [code.either(pair, (before, inside)) for pair in zip(sums, made, strict=True)]

    def _start(self, tile: Tile, rows: list[Value]) -> list[Value]:
        # The first tile starts from the bias or zero, the others from what the tile before left.
        code, spec = self.code, self.spec
        fresh = [code.zero(self.lanes)] * (spec.block * self.count)
        if spec.bias:
            biases = [self.values.one(code, self.values.at(code, self.arguments["bias"], row)) for row in rows]
            fresh = [code.splat(bias, self.lanes) for bias in biases for _ in range(self.count)]
        if not spec.tiled:
            return fresh
        before = code.ir.block
        with code.ir.if_then(code.ir.not_(tile.is_first)):
            left = [vector for row in rows for vector in self.left(row)]
            inside = code.ir.block
        return [code.either(pair, (before, inside)) for pair in zip(fresh, left, strict=True)]

    def accumulate(self, grains: tuple[Value, Value], offset: int, sums: list[Value]) -> list[Value]:
        """`sums` and the products of grains ``start:end``, of the block of rows that is at `offset` of the group."""
        code, spec, (start, end) = self.code, self.spec, grains
        # Values of half precision are read two at a time in any case.
        unroll = spec.chains == spec.block == 1 and (not spec.tiled or self.values.parts > 1)
        if (unroll or spec.pairs) and spec.columns == 1:
            with code.loop(start, code.sub(end, UNROLL - 1), UNROLL, sums) as several:
                self.ask(several.index, UNROLL, offset)
                several.carry(self.grains(several.index, UNROLL, offset, several.carried))
            start, sums = several.index, several.carried
        with code.loop(start, end, carried=sums) as single:
            self.ask(single.index, 1, offset)
            single.carry(self.grains(single.index, 1, offset, single.carried))
        return single.carried

    def ask(self, first: Value, count: int, offset: int) -> None:  # noqa: B027 - few wait for them
        """Ask for the values that come after those of `count` grains, if a subclass waits for them."""

    def grains(self, first: Value, count: int, offset: int, sums: list[Value]) -> list[Value]:
        """`sums` and the products of `count` grains."""
        code, spec = self.code, self.spec
        if spec.columns == 1:

            def index(grain: int) -> Value:
                return code.index_at(self.arguments["columns"], code.add(first, grain), spec.index)

            return self.several(index, count, first, offset, sums)
        start = code.mul(code.index_at(self.arguments["columns"], first, spec.index), spec.columns)

        def some(c: Value, count: int, sums: list[Value]) -> list[Value]:
            kept = code.add(code.mul(first, spec.columns), c)
            return self.several(lambda each: code.add(start, code.add(c, each)), count, kept, offset, sums)

        return over_columns(code, spec, sums, some)

    def several(
        self, column: Callable[[int], Value], count: int, first: Value, offset: int, sums: list[Value]
    ) -> list[Value]:
        """`sums` and the products of `count` columns, kept one after another from the one that is the `first` of all."""
        block, weights = self.spec.block, self._weights(first, count, offset)
        for each in range(count):
            sums = self._column(column(each), weights[each * block : (each + 1) * block], sums)
        return sums

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


def column_of(code: Code, spec: KernelSpec, arguments: Arguments, kept: Value) -> Value:
    """The column of the kept one that is number `kept` of all."""
    if spec.columns == 1:
        return code.index_at(arguments["columns"], kept, spec.index)
    width = code.integer(spec.columns)
    grain = code.index_at(arguments["columns"], code.ir.udiv(kept, width), spec.index)
    return code.add(code.mul(grain, width), code.ir.urem(kept, width))
