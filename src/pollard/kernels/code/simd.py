"""A small vocabulary of vectors over llvmlite, in which kernels are written.

Floats are 32 bits; a vector of one lane is a scalar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from pollard.kernels.code.flow import BYTE, I32, I64, POINTER, VOID, Flow, Value

F32 = ir.FloatType()
I16 = ir.IntType(16)
BLOCK = 4  # lanes of 128 bits, within which shuffles are cheap


def vector(lanes: int) -> Any:
    """The type of `lanes` fp32 lanes."""
    return F32 if lanes == 1 else ir.VectorType(F32, lanes)


def each(constant: Value, lanes: int) -> Value:
    """A constant in every lane; of one lane, itself."""
    return constant if lanes == 1 else ir.Constant(ir.VectorType(constant.type, lanes), [constant.constant] * lanes)


class Code(Flow):
    """Writes one function, vectors and all."""

    def load(self, pointer: Value, lanes: int) -> Value:
        """`lanes` fp32 numbers from `pointer`, no alignment asked."""
        return self.ir.load(self.ir.bitcast(pointer, vector(lanes).as_pointer()), align=4)

    def each_index(self, pointer: Value, position: Value, count: int, size: int) -> list[Value]:
        """The `count` indices of `size` bytes from `position` on, widened, none of which is negative; `count` fills whole words.

        They are read a 64-bit word at a time: what looks many numbers up waits for its loads.
        """
        start, found = self.offset(pointer, self.mul(position, size)), []
        for word in range(count * size // 8):
            address = self.ir.bitcast(self.offset(start, 8 * word), I64.as_pointer())
            bits = self.ir.load(address, align=size)
            pieces = (self.ir.lshr(bits, I64(shift)) for shift in range(0, 64, 8 * size))
            found += [self.ir.and_(piece, I64((1 << 8 * size) - 1)) for piece in pieces]
        return found

    def gathered(self, pointer: Value, indices: Sequence[Value]) -> Value:
        """The fp32 numbers at `indices` from `pointer` on, a lane each: 4 of them or more, a power of two.

        One by one: the instructions that do so at once take longer on many CPUs.
        """
        return self.side_by_side([self.load(self.floats(pointer, index), 1) for index in indices])

    def side_by_side(self, numbers: Sequence[Value]) -> Value:
        """A power of two of numbers, a lane each; of one, itself."""
        size, level = min(BLOCK, len(numbers)), []
        if size == 1:
            return numbers[0]
        for first in range(0, len(numbers), size):
            part = ir.Constant(vector(size), ir.Undefined)
            for lane, number in enumerate(numbers[first : first + size]):
                part = self.ir.insert_element(part, number, I32(lane))
            level.append(part)
        return self.joined(level)

    def joined(self, vectors: Sequence[Value]) -> Value:
        """The lanes of `vectors`, a power of two of them, one after another."""
        level = list(vectors)
        while len(level) > 1:
            width = 2 * self.lanes_of(level[0])
            level = [self.shuffle(*pair, range(width)) for pair in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    def padded(self, value: Value, lanes: int) -> Value:
        """The lanes of `value`, or a number alone, and zeros up to so many `lanes`."""
        count = self.lanes_of(value)
        if count == lanes:
            return value
        if count == 1:
            return self.ir.insert_element(self.zero(lanes), value, I32(0))
        return self.shuffle(value, self.zero(count), [min(lane, count) for lane in range(lanes)])

    def permuted(self, value: Value, lanes: Value, isa: str) -> Value:
        """The lanes of `value` that `lanes`, 32-bit integers, name."""
        name = {"avx512": "llvm.x86.avx512.permvar.sf.512", "avx2": "llvm.x86.avx2.permps"}[isa]
        return self.call(name, value.type, [value, lanes])

    def permuted_pair(self, left: Value, right: Value, lanes: Value) -> Value:
        """The lanes of `left` followed by `right`, of 16 each, that `lanes`, 32-bit integers, name: AVX-512."""
        return self.call("llvm.x86.avx512.vpermi2var.ps.512", left.type, [left, lanes, right])

    def halves(self, pointer: Value, lanes: int) -> Value:
        """`lanes` words of 16 bits from `pointer` on."""
        return self.ir.load(self.ir.bitcast(pointer, ir.VectorType(I16, lanes).as_pointer()), align=2)

    def masked_halves(self, pointer: Value, mask: Value, lanes: int) -> Value:
        """Those that `mask` allows, zero elsewhere; the others are not touched."""
        kind = ir.VectorType(I16, lanes)
        name = f"llvm.masked.load.v{lanes}i16.p0"
        return self.call(name, kind, [pointer, I32(2), mask, ir.Constant(kind, None)])

    def expanded(self, packed: Value, mask: Value, blank: Value) -> Value:
        """The first lanes of `packed` one after another in the lanes that `mask` allows, those of `blank` elsewhere: AVX-512, of 16 bits VBMI2.

        Where a compiler knows that `blank` is zero it names no register for it, and Zen 5 then waits for what the result's held before.
        """
        kind = f"v{packed.type.count}{'f32' if packed.type.element == F32 else 'i16'}"
        return self.call(f"llvm.x86.avx512.mask.expand.{kind}", packed.type, [packed, blank, mask])

    def splat_word(self, pointer: Value, lanes: int) -> Value:
        """The 32 bits at `pointer` in every lane, no alignment asked."""
        word = self.ir.load(self.ir.bitcast(pointer, I32.as_pointer()), align=1)
        return self.splat_index(self.ir.zext(word, I64), lanes)

    def constant_mask(self, lanes: Sequence[bool]) -> Value:
        """A mask of lanes that are known."""
        return ir.Constant(ir.VectorType(ir.IntType(1), len(lanes)), list(map(int, lanes)))

    def store(self, value: Value, pointer: Value) -> None:
        """Write the lanes of `value` to `pointer`, no alignment asked."""
        self.ir.store(value, self.ir.bitcast(pointer, value.type.as_pointer()), align=4)

    def store_one(self, value: Value, pointer: Value) -> None:
        """Write one fp32 number to `pointer`."""
        self.ir.store(value, self.ir.bitcast(pointer, F32.as_pointer()), align=4)

    def bits_of(self, mask: Value) -> Value:
        """The lanes of a mask as the lowest bits of an integer."""
        lanes = int(mask.type.count)
        return self.ir.zext(self.ir.bitcast(mask, ir.IntType(lanes)), I64)

    def zero(self, lanes: int) -> Value:
        """A vector of zeros."""
        return each(F32(0.0), lanes)

    def lanes_of(self, value: Value) -> int:
        """How many lanes `value` has."""
        return 1 if isinstance(value.type, ir.FloatType) else int(value.type.count)

    def splat(self, scalar: Value, lanes: int) -> Value:
        """`scalar`, of any type, in every lane; of one lane, itself."""
        return scalar if lanes == 1 else self._spread(scalar, lanes)

    def splat_index(self, value: Value, lanes: int) -> Value:
        """`value`, narrowed to 32 bits, in every lane of a vector, as `indices` are: of one lane, too."""
        return self._spread(self.ir.trunc(value, I32), lanes)

    def _spread(self, scalar: Value, lanes: int) -> Value:
        undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
        first = self.ir.insert_element(undefined, scalar, I32(0))
        return self.ir.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def shuffle(self, left: Value, right: Value, lanes: Sequence[int]) -> Value:
        """Lanes picked from `left` followed by `right`."""
        return self.ir.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))

    def fma(self, left: Value, right: Value, addend: Value) -> Value:
        """left * right + addend, rounded once."""
        return self.call(f"llvm.fma.{_suffix(addend.type)}", addend.type, [left, right, addend])

    def add_pairs(self, left: Value, right: Value, addend: Value) -> Value:
        """addend + high * high + low * low, rounded after each: of two vectors of words, each of which is two bfloat16 numbers.

        So Intel's manual puts it (VDPBF16PS), subnormal numbers being zero: what `fma` makes of the widened numbers, the high one first.
        """
        return self.call("llvm.x86.avx512bf16.dpbf16ps.512", addend.type, [addend, left, right])

    def sum_of(self, value: Value) -> Value:
        """The sum of the lanes of `value`: of its halves, of theirs, and so on."""
        return self.ir.extract_element(self.folded(value, 1), I32(0))

    def folded(self, value: Value, lanes: int) -> Value:
        """`value`, its halves added until it has so many `lanes`."""
        while (half := self.lanes_of(value) // 2) >= lanes:
            value = self.ir.fadd(*(self.shuffle(value, value, range(start, start + half)) for start in (0, half)))
        return value

    def sum_each(self, values: Sequence[Value], lanes: int) -> Value:
        """The lane sums of 4 vectors or more, a power of two and at most `lanes`: the sum of `values[i]` in lane i.

        Whatever their number, neighbouring lanes are added first, then pairs of neighbours, and so on.
        """
        level = list(values)
        for _ in range(2):
            level = self._paired(level, _halves(lanes, BLOCK, 1))
        while len(level) > 1:
            level = self._paired(level, _halves(lanes, lanes, BLOCK))
        (sums,) = level
        while self.lanes_of(sums) > len(values):
            even, odd = (half[: len(half) // 2] for half in _halves(self.lanes_of(sums), self.lanes_of(sums), BLOCK))
            sums = self.ir.fadd(self.shuffle(sums, sums, even), self.shuffle(sums, sums, odd))
        return sums

    def _paired(self, level: list[Value], halves: tuple[list[int], list[int]]) -> list[Value]:
        pairs = zip(level[::2], level[1::2], strict=True)
        return [self.ir.fadd(*(self.shuffle(*pair, half) for half in halves)) for pair in pairs]

    def lane_mask(self, filled: Value, lanes: int) -> Value:
        """True in the first `filled` lanes."""
        places = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        return self.ir.icmp_signed("<", places, self.splat_index(filled, lanes))

    def masked_load(self, pointer: Value, mask: Value, lanes: int) -> Value:
        """The lanes of `pointer` that `mask` allows, zero elsewhere; the others are not touched."""
        name = f"llvm.masked.load.v{lanes}f32.p0"
        return self.call(name, vector(lanes), [pointer, I32(4), mask, self.zero(lanes)])

    def masked_store(self, value: Value, pointer: Value, mask: Value, lanes: int) -> None:
        """Write the lanes of `value` that `mask` allows; the others are not touched."""
        self.call(f"llvm.masked.store.v{lanes}f32.p0", VOID, [value, pointer, I32(4), mask])

    def transpose(self, rows: Sequence[Value], lanes: int) -> list[Value]:
        """`lanes` vectors of `lanes` lanes, rows and columns exchanged."""
        level = list(rows)
        width = 1
        while width < lanes:
            low = [lane if not lane & width else lanes + lane - width for lane in range(lanes)]
            high = [lane + width if not lane & width else lanes + lane for lane in range(lanes)]
            for i in (i for i in range(lanes) if not i & width):
                first, second = level[i], level[i + width]
                level[i], level[i + width] = self.shuffle(first, second, low), self.shuffle(first, second, high)
            width *= 2
        return level

    def minimum(self, left: Value | int, right: Value | int) -> Value:
        """The smaller of two integers."""
        return self.ir.select(self.less(left, right), self.integer(left), self.integer(right))

    def prefetch(self, pointer: Value, *, near: bool = False) -> None:
        """Ask for the cache line at `pointer`, into L2: L1 belongs to the tile at hand; or where it is wanted soon, into L1."""
        self.call("llvm.prefetch.p0", VOID, [pointer, I32(0), I32(3 if near else 2), I32(1)])


def _suffix(kind: Any) -> str:
    return "f32" if isinstance(kind, ir.FloatType) else f"v{kind.count}f32"


def _halves(lanes: int, span: int, unit: int) -> tuple[list[int], list[int]]:
    # Of two vectors, span by span: the units of `unit` lanes at even places of the first and of the second, and those at odd
    # places. For lanes within a block and for whole blocks, each is a single instruction of every instruction set.
    even = [
        vector * lanes + start + lane
        for start in range(0, lanes, span)
        for vector in range(2)
        for lane in range(span)
        if lane // unit % 2 == 0
    ]
    return even, [lane + unit for lane in even]


__all__ = ["BYTE", "F32", "I16", "I32", "I64", "POINTER", "VOID", "Code", "Value", "each", "vector"]
