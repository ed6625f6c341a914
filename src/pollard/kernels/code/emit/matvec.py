"""``y = W x`` for one sample, whose numbers are float32 side by side: a row alone by vectors of its grains, or the rows of grains
side by side, several at a time, since a sum alone waits for each of its additions.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.tiles import run_of_groups
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


class _Row:
    """One row: its grains a vector at a time, the last few by themselves."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, row: Value) -> None:
        self.code, self.spec, self.arguments, self.row = code, spec, arguments, row
        self.values, self.lanes = NUMBERS[spec.values], TARGETS[spec.isa].lanes

    def run(self) -> None:
        """Sum and store."""
        code, lanes, arguments = self.code, self.lanes, self.arguments
        start = code.index_at(arguments["pointers"], self.row)
        end = code.index_at(arguments["pointers"], code.add(self.row, 1))
        step = VECTORS * lanes
        with code.loop(start, code.sub(end, step - 1), step, [code.zero(lanes)] * VECTORS) as several:
            places = [code.add(several.index, vector * lanes) for vector in range(VECTORS)]
            several.carry([self._vector(*pair) for pair in zip(places, several.carried, strict=True)])
        sums = code.ir.fadd(*several.carried)
        with code.loop(several.index, code.sub(end, lanes - 1), lanes, [sums]) as whole:
            whole.carry([self._vector(whole.index, whole.carried[0])])
        with code.loop(whole.index, end, carried=[self._bias()]) as single:
            single.carry([self._grain(single.index, single.carried[0])])
        total = code.ir.fadd(single.carried[0], code.sum_of(whole.carried[0]))
        result = code.relu(total, 1) if self.spec.relu else total
        numbers = NUMBERS[self.spec.numbers]
        numbers.store_few(code, result, numbers.at(code, arguments["y"], self.row))

    def _bias(self) -> Value:
        code = self.code
        if not self.spec.bias:
            return code.zero(1)
        return self.values.one(code, self.values.at(code, self.arguments["bias"], self.row))

    def _vector(self, position: Value, sums: Value) -> Value:
        code, arguments = self.code, self.arguments
        columns = code.each_index(arguments["columns"], position, self.lanes, self.spec.index)
        features = code.gathered(arguments["x"], columns)
        weights = self.values.few(code, self.values.at(code, arguments["values"], position), self.lanes)
        return code.fma(weights, features, sums)

    def _grain(self, position: Value, total: Value) -> Value:
        code, arguments = self.code, self.arguments
        column = code.index_at(arguments["columns"], position, self.spec.index)
        feature = code.load(code.floats(arguments["x"], column), 1)
        weight = self.values.one(code, self.values.at(code, arguments["values"], position))
        return code.fma(weight, feature, total)


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
        code, spec, arguments, values = self.code, self.spec, self.arguments, self.values
        column = code.index_at(arguments["columns"], position, spec.index)
        spread = code.splat(code.load(code.floats(arguments["x"], column), 1), spec.block)
        weights = values.at(code, arguments["values"], code.mul(position, spec.rows))
        loaded = [values.few(code, values.at(code, weights, part), spec.block) for part in self.parts]
        return [code.fma(weight, spread, total) for weight, total in zip(loaded, sums, strict=True)]

    def _store(self, group: Value, sums: list[Value]) -> None:
        code, spec = self.code, self.spec
        for part, total in zip(self.parts, sums, strict=True):
            result = code.relu(total, spec.block) if spec.relu else total
            place = code.add(code.mul(group, spec.rows), part)
            self.numbers.store_few(code, result, self.numbers.at(code, self.arguments["y"], place))
