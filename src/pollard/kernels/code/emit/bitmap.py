"""``Y = W X`` for one sample or a few where much is kept of single weights: a bit for each column says whether it is kept, and weights
are spread out to their columns by one instruction a vector. Nothing is looked up: x is read as it lies.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.activations import activated
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.tiles import ask_for, run_of_groups
from pollard.kernels.code.simd import I32, I64, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# A row has WORDS words of 64 `bits`, of which WHOLE have a column for each bit. Values up to the one at LIMIT may be read a vector at a time.
# BLANK is 0, which the compiler need not know.
ARGUMENTS = (
    "values", "x", "y", "bias", "pointers", "bits", "bounds", "PASSES", "WORDS", "WHOLE", "LIMIT", "LDX", "LDY", "BLANK",
)  # fmt: skip
WORD = 64
SPLIT = 16  # sums that run side by side, at most: those of a row may be as many as it has vectors in a word
FEWEST = 4  # vectors whose lanes are summed at once


def bitmap(spec: KernelSpec) -> ir.Module:
    """The module of the kernel; a unit of work is a run of rows."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        first, last = run_of_groups(code, arguments, *work)
        abreast = rows_abreast(spec)
        with code.loop(first, code.sub(last, abreast - 1), abreast) as several:
            _Rows(code, spec, arguments, [code.add(several.index, row) for row in range(abreast)]).run()
        if abreast > 1:
            with code.loop(several.index, last) as single:
                _Rows(code, spec, arguments, [single.index]).run()

    return kernel_module(ARGUMENTS, unit, x86=True)


def vector_of(spec: KernelSpec) -> int:
    """Columns that one vector has."""
    return TARGETS[spec.isa].lanes * (2 if spec.pairs else 1)


def rows_abreast(spec: KernelSpec) -> int:
    """Rows that share what is read of x: where that is as much as there is of W. Two streams of float32 come slower than one."""
    return 2 if spec.pairs else 1


class _Rows:
    """Rows side by side: where their values go on, and a sum of each for each sample, or several."""

    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, rows: list[Value]) -> None:
        self.code, self.spec, self.arguments, self.rows = code, spec, arguments, rows
        self.values, self.numbers = NUMBERS[spec.values], NUMBERS[spec.numbers]
        self.columns, self.samples = vector_of(spec), range(spec.abreast)
        self.vectors = range(WORD // self.columns)  # of a word
        self.own = len(rows) * len(self.samples)  # sums that there have to be
        self.sums = len(self.vectors) if self.own * len(self.vectors) <= SPLIT else 1  # of each
        nothing = code.splat_index(arguments["BLANK"], TARGETS[spec.isa].lanes)
        self.blank = code.ir.bitcast(nothing, self._kind)

    @property
    def _kind(self) -> ir.Type:
        return ir.VectorType(ir.IntType(16) if self.spec.pairs else ir.FloatType(), self.columns)

    def run(self) -> None:
        """Sum and store."""
        code, arguments = self.code, self.arguments
        starts = [code.index_at(arguments["pointers"], row) for row in self.rows]
        end = code.index_at(arguments["pointers"], code.add(self.rows[-1], 1))
        # Rows whose vectors might reach beyond the last value, and the last columns, are read number by number where there is one.
        whole = code.ir.select(code.less(arguments["LIMIT"], end), I64(0), arguments["WHOLE"])
        carried = [*starts, *[code.zero(TARGETS[self.spec.isa].lanes)] * (self.own * self.sums)]
        for first, last, guarded in ((0, whole, False), (whole, arguments["WORDS"], True)):
            with code.loop(first, last, carried=carried) as word:
                word.carry(self._word(word.index, word.carried, guarded=guarded))
            carried = word.carried
        self._store(carried[len(starts) :])

    def _word(self, word: Value, carried: list[Value], *, guarded: bool) -> list[Value]:
        """The columns of a word: where values go on, and sums, after it."""
        code, rows = self.code, len(self.rows)
        places, sums = carried[:rows], list(carried[rows:])
        words = [self._bits(row, word) for row in self.rows]
        if not guarded:
            for place in places:
                # About as many as there are: what is asked for twice costs little.
                ask_for(code, self.values.at(code, self.arguments["values"], place), self.values.bytes * WORD // 2)
        for vector in self.vectors:
            masks = [self._mask(bits, vector) for bits in words]
            weights = [
                self._weights(code.add(place, self._before(bits, vector)), bits, vector, guarded=guarded)
                for place, bits in zip(places, words, strict=True)
            ]
            for sample in self.samples:
                column = code.add(code.mul(word, WORD), vector * self.columns)
                features = self._features(sample, column, masks, guarded=guarded)
                for row in range(rows):
                    place = self._place(vector, row, sample)
                    sums[place] = self._added(weights[row], features[row], sums[place])
        return [*(code.add(place, code.one_bits(bits)) for place, bits in zip(places, words, strict=True)), *sums]

    def _place(self, vector: int, row: int, sample: int) -> int:
        return vector % self.sums * self.own + row * len(self.samples) + sample

    def _bits(self, row: Value, word: Value) -> Value:
        code, arguments = self.code, self.arguments
        return code.long_at(arguments["bits"], code.add(code.mul(row, arguments["WORDS"]), word))

    def _mask(self, bits: Value, vector: int) -> Value:
        """Which columns of a vector are kept."""
        code, columns = self.code, self.columns
        own = code.ir.trunc(code.ir.lshr(bits, I64(vector * columns)), ir.IntType(columns))
        return code.ir.bitcast(own, ir.VectorType(ir.IntType(1), columns))

    def _before(self, bits: Value, vector: int) -> Value:
        """How many weights of a word come before those of one of its vectors."""
        if not vector:
            return I64(0)
        return self.code.one_bits(self.code.ir.and_(bits, I64((1 << vector * self.columns) - 1)))

    def _weights(self, place: Value, bits: Value, vector: int, *, guarded: bool) -> Value:
        """Those of a vector, at their columns, the first of which is at `place`."""
        code, columns = self.code, self.columns
        mask, source = self._mask(bits, vector), self.values.at(code, self.arguments["values"], place)
        if guarded:
            count = code.one_bits(code.ir.zext(code.ir.bitcast(mask, ir.IntType(columns)), I64))
            packed = self._some(source, code.lane_mask(count, columns), self.spec.values)
        elif self.spec.pairs:
            packed = code.halves(source, columns)
        else:
            packed = self.values.few(code, source, columns)
        return code.expanded(packed, mask, self.blank)

    def _features(self, sample: int, column: Value, masks: list[Value], *, guarded: bool) -> list[Value]:
        """Numbers of a sample from a column on, for each of the `masks` zero outside it: what is not kept counts for nothing."""
        code = self.code
        start = code.add(code.mul(self.arguments["LDX"], sample), column)
        kind = "bfloat16" if self.spec.pairs else "float32"
        source = NUMBERS[kind].at(code, self.arguments["x"], start)
        if guarded:
            return [self._some(source, mask, kind) for mask in masks]
        found = code.halves(source, self.columns) if self.spec.pairs else code.load(source, self.columns)
        nothing = ir.Constant(found.type, None)
        return [code.ir.select(mask, found, nothing) for mask in masks]

    def _some(self, source: Value, mask: Value, kind: str) -> Value:
        """The numbers at `source` that `mask` allows, zero elsewhere; the others are not touched."""
        if self.spec.pairs:
            return self.code.masked_halves(source, mask, self.columns)
        return NUMBERS[kind].some(self.code, source, mask, self.columns)

    def _added(self, weights: Value, features: Value, total: Value) -> Value:
        code = self.code
        if not self.spec.pairs:
            return code.fma(weights, features, total)
        words = ir.VectorType(I32, code.lanes_of(total))
        return code.add_pairs(code.ir.bitcast(weights, words), code.ir.bitcast(features, words), total)

    def _store(self, sums: list[Value]) -> None:
        code, spec, lanes = self.code, self.spec, TARGETS[self.spec.isa].lanes
        total = sums[: self.own]
        for first in range(self.own, len(sums), self.own):
            total = [code.ir.fadd(*pair) for pair in zip(total, sums[first : first + self.own], strict=True)]
        count = max(FEWEST, 1 << (self.own - 1).bit_length())
        found = code.sum_each(total + [code.zero(lanes)] * (count - self.own), lanes)
        (result,) = activated(code, spec.activation, [code.ir.fadd(found, self._bias(count))], spec.numbers)
        result = self.numbers.rounded(code, result)
        samples = len(self.samples)
        for row, place in enumerate(self.rows):
            for sample in self.samples:
                where = (place, sample) if not spec.batch_first else (code.integer(sample), place)
                start = code.add(code.mul(where[0], self.arguments["LDY"]), where[1])
                one = code.ir.extract_element(result, I32(row * samples + sample))
                self.numbers.put_few(code, one, self.numbers.at(code, self.arguments["y"], start))

    def _bias(self, count: int) -> Value:
        code, found = self.code, self.code.zero(count)
        if not self.spec.bias:
            return found
        for row, place in enumerate(self.rows):
            own = self.values.one(code, self.values.at(code, self.arguments["bias"], place))
            for sample in self.samples:
                found = code.ir.insert_element(found, own, I32(row * len(self.samples) + sample))
        return found


__all__ = ["ARGUMENTS", "WORD", "bitmap", "rows_abreast", "vector_of"]
