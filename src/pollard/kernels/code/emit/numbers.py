"""Numbers as they lie in memory: float32, or a half precision of which two share what one float32 takes. In registers all are
float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from pollard.kernels.code.simd import BLOCK, F32, I16, I32, I64, VOID, Code, Value, each, vector
from pollard.kernels.code.spec import KernelSpec

HALF = ir.HalfType()
HIGH = I32(-(1 << 16))
QUIET = I32(0x00400000)  # the bit that every NaN of torch's has


@dataclass(frozen=True, slots=True)
class Mask:
    """Which of a unit are there: whole 32-bit words, and where the count of halves is odd, the lower half of the next word."""

    words: Value
    filled: Value
    count: Value

    @classmethod
    def of(cls, code: Code, filled: Value, numbers: Numbers, lanes: int) -> Mask:
        """The first `filled` numbers of a unit, at least one."""
        words = code.ir.lshr(filled, code.integer(numbers.parts - 1))
        return cls(code.lane_mask(words, lanes), filled, words)


class Numbers:
    """float32: a unit, what one load brings, is a vector of `parts` = 1."""

    bytes, parts = 4, 1

    def unit(self, lanes: int) -> int:
        """Numbers of a unit, where a vector has so many float32 `lanes`."""
        return self.parts * lanes

    def at(self, code: Code, pointer: Value, count: Value | int) -> Value:
        """`pointer` moved by `count` numbers."""
        return code.offset(pointer, code.mul(count, self.bytes))

    def one(self, code: Code, pointer: Value) -> Value:
        """The number at `pointer`."""
        return code.load(pointer, 1)

    def splats(self, code: Code, pointer: Value, count: int, lanes: int) -> list[Value]:
        """The `count` numbers from `pointer` on, each in all lanes of a vector."""
        return [code.splat(self.one(code, self.at(code, pointer, each)), lanes) for each in range(count)]

    def load(self, code: Code, pointer: Value, lanes: int, mask: Mask | None = None) -> list[Value]:
        """The `parts` vectors of the unit at `pointer`, in the order that `store` takes; zero, and untouched, outside `mask`."""
        return self.widened(code, self.words(code, pointer, lanes, mask), lanes)

    def store(self, code: Code, values: Sequence[Value], pointer: Value, lanes: int, mask: Mask | None = None) -> None:
        """Write the unit of `values` to `pointer`, rounded once; nothing outside `mask`."""
        self.put_words(code, self.narrowed(code, values, lanes), pointer, mask)

    def words(self, code: Code, pointer: Value, lanes: int, mask: Mask | None = None) -> Value:
        """The unit at `pointer` as it lies there, 32 bits a lane; zero, and untouched, outside `mask`."""
        return code.load(pointer, lanes) if mask is None else code.masked_load(pointer, mask.words, lanes)

    def put_words(self, code: Code, words: Value, pointer: Value, mask: Mask | None = None) -> None:
        """Write what `words` gave, or a part of it."""
        if mask is None:
            code.store(words, pointer)
        else:
            code.masked_store(words, pointer, mask.words, code.lanes_of(words))

    def widened(self, code: Code, words: Value, lanes: int) -> list[Value]:  # noqa: ARG002 - float32 is what it is
        """The `parts` vectors of float32 that are in a vector of words."""
        return [words]

    def narrowed(self, code: Code, values: Sequence[Value], lanes: int) -> Value:  # noqa: ARG002
        """The words that `widened` makes `values` of, rounded."""
        return values[0]

    def places(self, part: int, lanes: int) -> list[int]:  # noqa: ARG002 - float32 is what it is
        """Which numbers of a unit are in the lanes of one of its vectors."""
        return list(range(lanes))

    def beside(self, code: Code, values: Sequence[Value], lanes: int) -> Value:  # noqa: ARG002
        """Words of one number of each of `parts` vectors, in their order, rounded."""
        return values[0]

    def side_by_side(self, code: Code, pointers: Sequence[Value], lanes: int) -> list[Value]:
        """Of a unit's rows of the batch, at `pointers`, `lanes` features each: vectors of words that, transposed, are the units
        of those features.
        """
        return [self.words(code, pointer, lanes) for pointer in pointers]

    def copy_one(self, code: Code, source: Value, target: Value) -> None:
        """Copy a number, as it lies there."""
        code.store_one(code.load(source, 1), target)

    def copy(self, code: Code, source: Value, target: Value, count: Value) -> None:
        """Copy `count` numbers, as they lie there."""
        with code.loop(0, count) as one:
            self.copy_one(code, self.at(code, source, one.index), self.at(code, target, one.index))

    def few(self, code: Code, pointer: Value, lanes: int) -> Value:
        """A vector of as many numbers as it has `lanes`, in their order."""
        return code.load(pointer, lanes)

    def some(self, code: Code, pointer: Value, mask: Value, lanes: int) -> Value:
        """Those of as many numbers that `mask` allows, zero elsewhere; the others are not touched."""
        return code.masked_load(pointer, mask, lanes)

    def store_few(self, code: Code, values: Value, pointer: Value) -> None:
        """Write the lanes of `values` to `pointer`, in their order, rounded."""
        self.put_few(code, self.rounded(code, values), pointer)

    def rounded(self, code: Code, values: Value) -> Value:  # noqa: ARG002 - float32 is what it is
        """What `put_few` writes exactly: as many lanes as it likes at once."""
        return values

    def put_few(self, code: Code, values: Value, pointer: Value) -> None:
        """Write the lanes of `values`, which are `rounded` already, to `pointer`, in their order."""
        code.store(values, pointer)


class _Halves(Numbers, ABC):
    """Two numbers a 32-bit word: a unit is a vector of words, which makes two of float32."""

    bytes, parts = 2, 2

    @abstractmethod
    def of_halves(self, code: Code, halves: Value) -> Value:
        """The numbers that words of 16 bits are."""

    def few(self, code: Code, pointer: Value, lanes: int) -> Value:
        return self.one(code, pointer) if lanes == 1 else self.of_halves(code, code.halves(pointer, lanes))

    def some(self, code: Code, pointer: Value, mask: Value, lanes: int) -> Value:
        return self.of_halves(code, code.masked_halves(pointer, mask, lanes))

    def words(self, code: Code, pointer: Value, lanes: int, mask: Mask | None = None) -> Value:
        kind = ir.VectorType(I32, lanes)
        if mask is None:
            return _get(code, pointer, kind)
        zero = ir.Constant(kind, [0] * lanes)
        words = code.call(f"llvm.masked.load.v{lanes}i32.p0", kind, [pointer, I32(2), mask.words, zero])
        # The last number again, which is there whatever their count: where that is odd, it is the lower half of the next word.
        last = code.ir.zext(_get(code, code.offset(pointer, code.mul(code.sub(mask.filled, 1), 2)), I16), I64)
        tail = code.splat_index(code.mul(last, code.ir.and_(mask.filled, I64(1))), lanes)
        next_word = ir.Constant(kind, list(range(lanes)))
        place = code.ir.icmp_signed("==", next_word, code.splat_index(mask.count, lanes))
        return code.ir.or_(words, code.ir.select(place, tail, zero))

    def put_words(self, code: Code, words: Value, pointer: Value, mask: Mask | None = None) -> None:
        if mask is None:
            put(code, words, pointer)
            return
        code.call(f"llvm.masked.store.v{words.type.count}i32.p0", VOID, [words, pointer, I32(2), mask.words])
        with code.when(code.equal(code.ir.and_(mask.filled, I64(1)), 1)):
            half = code.ir.trunc(code.ir.extract_element(words, code.ir.trunc(mask.count, I32)), I16)
            put(code, half, code.offset(pointer, code.mul(mask.count, 4)))

    def copy_one(self, code: Code, source: Value, target: Value) -> None:
        put(code, _get(code, source, I16), target)

    def side_by_side(self, code: Code, pointers: Sequence[Value], lanes: int) -> list[Value]:
        wide = ir.VectorType(I32, lanes)
        low, high = ([code.ir.zext(code.halves(each, lanes), wide) for each in pointers[half::2]] for half in (0, 1))
        return [
            code.ir.or_(below, code.ir.shl(above, each(I32(16), lanes))) for below, above in zip(low, high, strict=True)
        ]


class _BFloat16(_Halves):
    """The upper half of a float32: of a vector of words the even numbers come first, then the odd ones, and no lane moves."""

    def one(self, code: Code, pointer: Value) -> Value:
        return code.ir.bitcast(code.ir.shl(code.ir.zext(_get(code, pointer, I16), I32), I32(16)), F32)

    def splats(self, code: Code, pointer: Value, count: int, lanes: int) -> list[Value]:
        # To broadcast a word is a load and no more; it brings two of them.
        splats: list[Value] = []
        for number in range(0, count - 1, 2):
            word = code.ir.zext(_get(code, self.at(code, pointer, number), I32), I64)
            splats += self.widened(code, code.splat_index(word, lanes), lanes)
        return splats if count % 2 == 0 else splats + super().splats(code, self.at(code, pointer, count - 1), 1, lanes)

    def widened(self, code: Code, words: Value, lanes: int) -> list[Value]:
        even = code.ir.shl(words, each(I32(16), lanes))
        odd = code.ir.and_(words, each(HIGH, lanes))
        return [code.ir.bitcast(half, vector(lanes)) for half in (even, odd)]

    def places(self, part: int, lanes: int) -> list[int]:
        return [2 * lane + part for lane in range(lanes)]

    def narrowed(self, code: Code, values: Sequence[Value], lanes: int) -> Value:
        return self.beside(code, values, lanes)

    def beside(self, code: Code, values: Sequence[Value], lanes: int) -> Value:
        even, odd = (_rounded(code, value, lanes) for value in values)
        return code.ir.or_(code.ir.lshr(even, each(I32(16), lanes)), code.ir.and_(odd, each(HIGH, lanes)))

    def of_halves(self, code: Code, halves: Value) -> Value:
        lanes = halves.type.count
        words = code.ir.shl(code.ir.zext(halves, ir.VectorType(I32, lanes)), each(I32(16), lanes))
        return code.ir.bitcast(words, vector(lanes))

    def rounded(self, code: Code, values: Value) -> Value:
        lanes = code.lanes_of(values)
        return code.ir.bitcast(_rounded(code, values, lanes), values.type)

    def put_few(self, code: Code, values: Value, pointer: Value) -> None:
        lanes = code.lanes_of(values)
        upper = code.ir.lshr(_bits(code, values, lanes), each(I32(16), lanes))
        put(code, code.ir.trunc(upper, I16 if lanes == 1 else ir.VectorType(I16, lanes)), pointer)


class _Paired(_BFloat16):
    """In the order in which `zipped` gives pairs: of each block of 128 bits the first four numbers, then of each the last four."""

    def widened(self, code: Code, words: Value, lanes: int) -> list[Value]:
        nothing = ir.Constant(words.type, [0] * lanes)
        return [code.ir.bitcast(half, vector(lanes)) for half in zipped(code, words, nothing)]

    def places(self, part: int, lanes: int) -> list[int]:
        return [2 * lane - lane % BLOCK + BLOCK * part for lane in range(lanes)]

    def narrowed(self, code: Code, values: Sequence[Value], lanes: int) -> Value:
        first, last = (code.ir.bitcast(_rounded(code, each, lanes), ir.VectorType(I16, 2 * lanes)) for each in values)
        # Their upper halves, block by block.
        blocks = [range(start + 1, start + 2 * BLOCK, 2) for start in range(0, 2 * lanes, 2 * BLOCK)]
        places = [place + vector for block in blocks for vector in (0, 2 * lanes) for place in block]
        return code.ir.bitcast(code.shuffle(first, last, places), ir.VectorType(I32, lanes))


class _Float16(_Halves):
    """What every CPU that kernels are generated for converts to float32 and back."""

    def one(self, code: Code, pointer: Value) -> Value:
        return code.ir.fpext(_get(code, pointer, HALF), F32)

    def widened(self, code: Code, words: Value, lanes: int) -> list[Value]:
        both = code.ir.bitcast(words, ir.VectorType(HALF, 2 * lanes))
        pieces = (code.shuffle(both, both, range(start, start + lanes)) for start in (0, lanes))
        return [code.ir.fpext(piece, vector(lanes)) for piece in pieces]

    def places(self, part: int, lanes: int) -> list[int]:
        return [part * lanes + lane for lane in range(lanes)]

    def narrowed(self, code: Code, values: Sequence[Value], lanes: int) -> Value:
        return self._rounded(code, values, range(2 * lanes))

    def beside(self, code: Code, values: Sequence[Value], lanes: int) -> Value:
        return self._rounded(code, values, [lane + half for lane in range(lanes) for half in (0, lanes)])

    def _rounded(self, code: Code, values: Sequence[Value], places: Sequence[int]) -> Value:
        lanes = len(places) // 2
        first, second = (code.ir.fptrunc(value, ir.VectorType(HALF, lanes)) for value in values)
        return code.ir.bitcast(code.shuffle(first, second, places), ir.VectorType(I32, lanes))

    def of_halves(self, code: Code, halves: Value) -> Value:
        lanes = halves.type.count
        return code.ir.fpext(code.ir.bitcast(halves, ir.VectorType(HALF, lanes)), vector(lanes))

    def put_few(self, code: Code, values: Value, pointer: Value) -> None:
        lanes = code.lanes_of(values)
        put(code, code.ir.fptrunc(values, HALF if lanes == 1 else ir.VectorType(HALF, lanes)), pointer)


NUMBERS: dict[str, Numbers] = {"float32": Numbers(), "bfloat16": _BFloat16(), "float16": _Float16()}
_PAIRED = _Paired()


def dense(spec: KernelSpec) -> Numbers:
    """How dense operands and results of `spec` lie in memory, and in which order their numbers are in registers."""
    return _PAIRED if spec.pairs else NUMBERS[spec.numbers]


def zipped(code: Code, above: Value, below: Value) -> list[Value]:
    """Of two units, each number of `above` in the upper half of a word, its counterpart of `below` in the lower: two vectors of words.

    Within blocks of 128 bits, of which the first holds the first halves: an instruction each.
    """
    lanes = above.type.count
    lower, upper = (code.ir.bitcast(unit, ir.VectorType(I16, 2 * lanes)) for unit in (below, above))
    found = []
    for half in (0, BLOCK):
        places = [start + half + each for start in range(0, 2 * lanes, 2 * BLOCK) for each in range(BLOCK)]
        pairs = [place + unit for place in places for unit in (0, 2 * lanes)]
        found.append(code.ir.bitcast(code.shuffle(lower, upper, pairs), above.type))
    return found


def zipped_splats(code: Code, above: Value, below: Value, count: int, lanes: int) -> list[Value]:
    """Words in all lanes: each of the `count` numbers at `above` in the upper half, its counterpart at `below` in the lower."""
    upper, lower = (code.halves(each, count) for each in (above, below))
    pairs = [place for number in range(count) for place in (number, count + number)]
    words = code.ir.bitcast(code.shuffle(lower, upper, pairs), ir.VectorType(I32, count))
    return [code.shuffle(words, words, [number] * lanes) for number in range(count)]


def _get(code: Code, pointer: Value, kind: Any) -> Value:
    return code.ir.load(code.ir.bitcast(pointer, kind.as_pointer()), align=2)


def put(code: Code, value: Value, pointer: Value) -> None:
    """Write what has 16 bits or more, or a vector of it, to `pointer`, aligned as halves are."""
    code.ir.store(value, code.ir.bitcast(pointer, value.type.as_pointer()), align=2)


def _rounded(code: Code, value: Value, lanes: int) -> Value:
    """The bits of float32 numbers, of which the upper halves are those of bfloat16: to nearest, ties to even."""
    bits = _bits(code, value, lanes)
    odd = code.ir.and_(code.ir.lshr(bits, each(I32(16), lanes)), each(I32(1), lanes))
    return carried(code, value, code.ir.add(each(I32(0x7FFF), lanes), odd), lanes)


def carried(code: Code, value: Value, below: Value, lanes: int) -> Value:
    """The bits of float32 numbers with what is `below` their upper halves added, which may carry into those; NaN stays NaN."""
    bits = _bits(code, value, lanes)
    # What is added would carry a NaN over to another number.
    is_nan = code.ir.fcmp_unordered("uno", value, value)
    return code.ir.select(is_nan, code.ir.or_(bits, each(QUIET, lanes)), code.ir.add(bits, below))


def _bits(code: Code, value: Value, lanes: int) -> Value:
    return code.ir.bitcast(value, I32 if lanes == 1 else ir.VectorType(I32, lanes))


__all__ = ["NUMBERS", "QUIET", "Mask", "Numbers", "carried", "dense", "put", "zipped", "zipped_splats"]
