"""``y = W x`` for one sample, whose numbers are float32 side by side: a row alone by vectors of its grains, or the rows of grains
side by side, several at a time, since a sum alone waits for each of its additions. Grains of two to four rows are taken as those of few samples are.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.activations import activated
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.tiles import ask_for_columns, ask_for_values, over_columns, run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

ARGUMENTS = ("values", "x", "y", "bias", "pointers", "columns", "bounds", "PASSES")
SUMS = 4  # that run side by side: an addition takes about as long as the loads of so many
VECTORS = 2  # of sums of a row alone: looking numbers up takes longer than adding them


def matvec(spec: KernelSpec) -> ir.Module:
    """The module of a matrix-vector kernel; a unit of work is a chunk of row groups.

    The rows of a grain are each summed in the order of their columns. A row alone is summed in the lanes of vectors: taking
    several rows in turns would read as many places of memory at once as there are rows, each for a short while.
    """

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        first, last = run_of_groups(code, arguments, *work)
        if spec.rows == 1:
            with code.loop(first, last) as row:
                _Row(code, spec, arguments, row.index).run()
            return
        abreast = max(1, SUMS * spec.block // spec.rows)
        with code.loop(first, code.sub(last, abreast - 1), abreast) as several:
            _Rows(code, spec, arguments, [code.add(several.index, g) for g in range(abreast)]).run()
        with code.loop(several.index, last) as single:
            _Rows(code, spec, arguments, [single.index]).run()

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


class LoneRow:
    """A row of one sample: the value that it starts from, where its values are, and how it ends."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, row: Value) -> None:
        self.code, self.spec, self.arguments, self.row = code, spec, arguments, row
        self.values, self.lanes = NUMBERS[spec.values], TARGETS[spec.isa].lanes

    def bias(self) -> Value:
        """What the sum starts from."""
        code = self.code
        if not self.spec.bias:
            return code.zero(1)
        return self.values.one(code, self.values.at(code, self.arguments["bias"], self.row))

    def weight(self, place: Value) -> Value:
        """Where the value at `place` of all lies."""
        return self.values.at(self.code, self.arguments["values"], place)

    def finish(self, rest: Value, sums: Value) -> None:
        """Store the sum of `rest` and of the lanes of `sums`."""
        code, numbers = self.code, NUMBERS[self.spec.numbers]
        total = code.ir.fadd(rest, code.sum_of(sums))
        (result,) = activated(code, self.spec.activation, [total], self.spec.numbers)
        numbers.store_few(code, result, numbers.at(code, self.arguments["y"], self.row))


class _Row(LoneRow):
    """One row: as many of its weights as a vector has lanes at a time, or a wider grain; the last few by themselves."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, row: Value) -> None:
        super().__init__(code, spec, arguments, row)
        self.grains = 1 if self.lanes % spec.columns else self.lanes // spec.columns  # at a time

    def run(self) -> None:
        """Sum and store."""
        code, spec, lanes, arguments = self.code, self.spec, self.lanes, self.arguments
        start = code.index_at(arguments["pointers"], self.row)
        end = code.index_at(arguments["pointers"], code.add(self.row, 1))
        step = VECTORS * self.grains
        with code.loop(start, code.sub(end, step - 1), step, [code.zero(lanes)] * VECTORS) as several:
            places = [code.add(several.index, vector * self.grains) for vector in range(VECTORS)]
            ask_for_values(code, spec, arguments, several.index, step)
            ask_for_columns(code, spec, arguments, several.index, step)
            several.carry([self._several(*pair) for pair in zip(places, several.carried, strict=True)])
        sums = code.ir.fadd(*several.carried)
        with code.loop(several.index, code.sub(end, self.grains - 1), self.grains, [sums]) as whole:
            whole.carry([self._several(whole.index, whole.carried[0])])
        with code.loop(whole.index, end, carried=[self.bias()]) as single:
            single.carry([self._one(single.index, single.carried[0])])
        self.finish(single.carried[0], whole.carried[0])

    def _several(self, position: Value, sums: Value) -> Value:
        """The grains from `position` on that are taken at a time."""
        code, lanes, columns = self.code, self.lanes, self.spec.columns
        weights = code.mul(position, columns)
        if columns == 1:
            places = code.each_index(self.arguments["columns"], position, lanes, self.spec.index)
            return self._added(weights, code.gathered(self.arguments["x"], places), sums)
        if self.grains == 1:
            return self._alone(weights, self._inputs(position), sums)
        pieces = [code.load(self._inputs(code.add(position, each)), columns) for each in range(self.grains)]
        return self._added(weights, code.joined(pieces), sums)

    def _alone(self, place: Value, inputs: Value, sums: Value) -> Value:
        """`sums` and the products of a grain, whose last vector is filled up with zeros where it has to be."""
        code, lanes = self.code, self.lanes
        for first in range(0, self.spec.columns, lanes):
            count = min(lanes, self.spec.columns - first)
            weights = self.values.few(code, self.weight(code.add(place, first)), count)
            features = code.load(code.floats(inputs, first), count)
            sums = code.fma(code.padded(weights, lanes), code.padded(features, lanes), sums)
        return sums

    def _inputs(self, position: Value) -> Value:
        """Where the columns of a grain begin in x."""
        code, columns = self.code, self.spec.columns
        index = code.index_at(self.arguments["columns"], position, self.spec.index)
        return code.floats(self.arguments["x"], code.mul(index, columns))

    def _added(self, place: Value, features: Value, sums: Value) -> Value:
        weights = self.values.few(self.code, self.weight(place), self.lanes)
        return self.code.fma(weights, features, sums)

    def _one(self, position: Value, total: Value) -> Value:
        code, inputs = self.code, self._inputs(position)
        for column in range(self.spec.columns):  # fewer than lanes: else none is left over
            weight = self.values.one(code, self.weight(code.add(code.mul(position, self.spec.columns), column)))
            total = code.fma(weight, code.load(code.floats(inputs, column), 1), total)
        return total


class _Rows:
    """Row groups abreast: a vector, or several, of sums each."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, groups: list[Value]) -> None:
        self.code, self.spec, self.arguments, self.groups = code, spec, arguments, groups
        self.numbers, self.values = NUMBERS[spec.numbers], NUMBERS[spec.values]
        self.parts = range(0, spec.rows, spec.block)

    def run(self) -> None:
        """Sum and store."""
        code, pointers = self.code, self.arguments["pointers"]
        starts = [code.index_at(pointers, group) for group in self.groups]
        counts = [
            code.sub(code.index_at(pointers, code.add(group, 1)), start)
            for group, start in zip(self.groups, starts, strict=True)
        ]
        shared = counts[0]
        for count in counts[1:]:
            shared = code.minimum(shared, count)
        fresh = [self._bias(group, part) for group in self.groups for part in self.parts]
        with code.loop(0, shared, carried=fresh) as together:
            following = []
            for start, sums in zip(starts, self._by_group(together.carried), strict=True):
                following += self._grain(code.add(start, together.index), sums)
            together.carry(following)
        for group, start, count, sums in zip(
            self.groups, starts, counts, self._by_group(together.carried), strict=True
        ):
            with code.loop(shared, count, carried=sums) as alone:
                alone.carry(self._grain(code.add(start, alone.index), alone.carried))
            self._store(group, alone.carried)

    def _by_group(self, sums: list[Value]) -> list[list[Value]]:
        size = len(self.parts)
        return [sums[first : first + size] for first in range(0, len(sums), size)]

    def _bias(self, group: Value, part: int) -> Value:
        code, spec = self.code, self.spec
        if not spec.bias:
            return code.zero(spec.block)
        place = code.add(code.mul(group, spec.rows), part)
        return self.values.few(code, self.values.at(code, self.arguments["bias"], place), spec.block)

    def _grain(self, position: Value, sums: list[Value]) -> list[Value]:
        code, spec, arguments = self.code, self.spec, self.arguments
        start = code.mul(code.index_at(arguments["columns"], position, spec.index), spec.columns)

        def columns(c: Value, some: int, sums: list[Value]) -> list[Value]:
            for each in range(some):
                column = code.add(c, each)
                feature = code.load(code.floats(arguments["x"], code.add(start, column)), 1)
                place = code.mul(code.add(code.mul(position, spec.columns), column), spec.rows)
                sums = self._column(place, code.splat(feature, spec.block), sums)
            return sums

        return over_columns(code, spec, sums, columns)

    def _column(self, place: Value, spread: Value, sums: list[Value]) -> list[Value]:
        code, values = self.code, self.values
        weights = values.at(code, self.arguments["values"], place)
        loaded = [values.few(code, values.at(code, weights, part), self.spec.block) for part in self.parts]
        return [code.fma(weight, spread, total) for weight, total in zip(loaded, sums, strict=True)]

    def _store(self, group: Value, sums: list[Value]) -> None:
        code, spec = self.code, self.spec
        for part, result in zip(self.parts, activated(code, spec.activation, sums, spec.numbers), strict=True):
            place = code.add(code.mul(group, spec.rows), part)
            self.numbers.store_few(code, result, self.numbers.at(code, self.arguments["y"], place))
