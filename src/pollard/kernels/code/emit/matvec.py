"""``y = W x`` for one sample: several rows at a time, since a sum alone waits for each of its additions."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# x has its features LDX apart, y lies in one piece.
ARGUMENTS = ("values", "x", "y", "bias", "pointers", "columns", "bounds", "PASSES", "LDX")
SUMS = 4  # that run side by side: an addition takes about as long as the loads of so many


def matvec(spec: KernelSpec) -> ir.Module:
    """The module of a matrix-vector kernel; a unit of work is a chunk of row groups.

    Each row is summed in the order of its columns, as `gather` does: the same bits whatever the batch.
    """

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        first, last = run_of_groups(code, arguments, *work)
        abreast = max(1, SUMS * spec.block // spec.rows)
        with code.loop(first, code.sub(last, abreast - 1), abreast) as several:
            _Rows(code, spec, arguments, [code.add(several.index, g) for g in range(abreast)]).run()
        with code.loop(several.index, last) as single:
            _Rows(code, spec, arguments, [single.index]).run()

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


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
        column = code.index_at(arguments["columns"], position)
        place = self.numbers.at(code, arguments["x"], code.mul(column, arguments["LDX"]))
        spread = code.splat(self.numbers.one(code, place), spec.block)
        weights = values.at(code, arguments["values"], code.mul(position, spec.rows))
        loaded = [values.few(code, values.at(code, weights, part), spec.block) for part in self.parts]
        return [code.fma(weight, spread, total) for weight, total in zip(loaded, sums, strict=True)]

    def _store(self, group: Value, sums: list[Value]) -> None:
        code, spec = self.code, self.spec
        for part, total in zip(self.parts, sums, strict=True):
            result = code.relu(total, spec.block) if spec.relu else total
            place = code.add(code.mul(group, spec.rows), part)
            self.numbers.store_few(code, result, self.numbers.at(code, self.arguments["y"], place))
