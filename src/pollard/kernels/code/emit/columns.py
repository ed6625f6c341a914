"""Products of the rows of a dense operand, added to the columns that a row group keeps: vectors held, sums loaded and stored."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import NUMBERS, dense
from pollard.kernels.code.emit.tiles import Tile, over_columns
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS


class Columns(ABC):
    """The walk over the grains of a row group; a subclass says which vectors a row brings, and where sums of a column are.

    The arguments `columns` and `values` are those of W. A grain loads and stores the sums of its column once for all rows of a block.
    """

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments) -> None:
        self.code, self.spec, self.arguments = code, spec, arguments
        self.lanes, self.numbers, self.values = TARGETS[spec.isa].lanes, dense(spec), NUMBERS[spec.values]

    @abstractmethod
    def vectors(self, group: Value, row: int) -> list[Value]:
        """What that row of a row group of W is multiplied with."""

    @abstractmethod
    def places(self, column: Value) -> list[Value]:
        """Where the sums of `column` of W are, one for each of those vectors."""

    def row_group(self, _: Tile, group: Value, grains: tuple[Value, Value]) -> None:
        """What grains ``start:end`` of `group` add to their columns."""
        spec = self.spec
        for offset in range(0, spec.rows, spec.block):
            held = self.held(group, offset)
            with self.code.loop(*grains) as grain:
                self._grain(grain.index, offset, held)

    def held(self, group: Value, offset: int) -> list[list[Value]]:
        """What weights of a block of rows are multiplied with."""
        return [self.vectors(group, offset + r) for r in range(self.spec.block)]

    def added(self, at: Value, sums: list[Value], held: list[list[Value]]) -> list[Value]:
        """`sums` and the products of what is held with the weights at `at`."""
        for weight, vectors in zip(self.values.splats(self.code, at, self.spec.block, self.lanes), held, strict=True):
            sums = [self.code.fma(weight, vector, total) for vector, total in zip(vectors, sums, strict=True)]
        return sums

    def _grain(self, position: Value, offset: int, held: list[list[Value]]) -> None:
        code, spec = self.code, self.spec
        start = code.mul(code.index_at(self.arguments["columns"], position, spec.index), spec.columns)

        def columns(c: Value, some: int, _: list[Value]) -> list[Value]:
            for each in range(some):
                column = code.add(c, each)
                place = code.mul(code.add(code.mul(position, spec.columns), column), spec.rows)
                self._column(code.add(start, column), code.add(place, offset), held)
            return []

        over_columns(code, spec, [], columns)

    def _column(self, column: Value, place: Value, held: list[list[Value]]) -> None:
        code, lanes, places = self.code, self.lanes, self.places(column)
        at = self.values.at(code, self.arguments["values"], place)
        sums = [code.load(there, lanes) for there in places]
        for total, there in zip(self.added(at, sums, held), places, strict=True):
            code.store(total, there)
