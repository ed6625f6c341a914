"""A small vocabulary of loops and vectors over llvmlite, in which kernels are written.

Addresses are byte pointers, integers are 64 bits, floats are 32 bits; a vector of one lane is a scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

BYTE = ir.IntType(8)
POINTER = BYTE.as_pointer()
I32 = ir.IntType(32)
I64 = ir.IntType(64)
F32 = ir.FloatType()
VOID = ir.VoidType()
Value = Any  # an llvmlite value: the library ships no types
BLOCK = 4  # lanes of 128 bits, within which shuffles are cheap


def vector(lanes: int) -> Any:
    """The type of `lanes` fp32 lanes."""
    return F32 if lanes == 1 else ir.VectorType(F32, lanes)


class Loop:
    """A running loop: its index, the values it carries from turn to turn, and what they become."""

    def __init__(self, index: Value, carried: list[Value]) -> None:
        self.index, self.carried, self.following = index, carried, carried

    def carry(self, values: Sequence[Value]) -> None:
        """Give the carried values of the next turn."""
        self.following = list(values)


class Code:
    """Writes one function, instruction by instruction."""

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[Any]) -> None:
        self.module = module
        self.function = ir.Function(module, ir.FunctionType(VOID, list(arguments)), name)
        self.ir = ir.IRBuilder(self.function.append_basic_block("entry"))

    # -- integers and addresses

    def integer(self, value: Value | int) -> Value:
        """`value` as a 64-bit integer."""
        return I64(value) if isinstance(value, int) else value

    def add(self, left: Value | int, right: Value | int) -> Value:
        """left + right."""
        return self.ir.add(self.integer(left), self.integer(right))

    def sub(self, left: Value | int, right: Value | int) -> Value:
        """left - right."""
        return self.ir.sub(self.integer(left), self.integer(right))

    def mul(self, left: Value | int, right: Value | int) -> Value:
        """left * right."""
        return self.ir.mul(self.integer(left), self.integer(right))

    def less(self, left: Value | int, right: Value | int) -> Value:
        """left < right, signed."""
        return self.ir.icmp_signed("<", self.integer(left), self.integer(right))

    def equal(self, left: Value | int, right: Value | int) -> Value:
        """left == right."""
        return self.ir.icmp_signed("==", self.integer(left), self.integer(right))

    def offset(self, pointer: Value, count: Value | int) -> Value:
        """`pointer` moved by `count` bytes."""
        return self.ir.gep(pointer, [self.integer(count)])

    def floats(self, pointer: Value, count: Value | int) -> Value:
        """`pointer` moved by `count` fp32 numbers."""
        return self.offset(pointer, self.mul(count, 4))

    def index_at(self, pointer: Value, position: Value | int, size: int = 4) -> Value:
        """The index of `size` bytes at `position`, widened; those of 2 have no sign."""
        address = self.offset(pointer, self.mul(position, size))
        found = self.ir.load(self.ir.bitcast(address, ir.IntType(8 * size).as_pointer()))
        return self.ir.sext(found, I64) if size == 4 else self.ir.zext(found, I64)

    def long_at(self, pointer: Value, position: Value | int) -> Value:
        """The 64-bit index at `position`."""
        return self.ir.load(self.ir.bitcast(self.offset(pointer, self.mul(position, 8)), I64.as_pointer()))

    def put_index(self, value: Value | int, pointer: Value, position: Value | int, size: int = 4) -> None:
        """Write `value`, narrowed to `size` bytes, at `position`."""
        address, kind = self.offset(pointer, self.mul(position, size)), ir.IntType(8 * size)
        self.ir.store(self.ir.trunc(self.integer(value), kind), self.ir.bitcast(address, kind.as_pointer()))

    def byte_at(self, pointer: Value, position: Value | int) -> Value:
        """The byte at `position`, widened."""
        return self.ir.zext(self.ir.load(self.offset(pointer, position)), I64)

    def put_byte(self, value: Value | int, pointer: Value, position: Value | int) -> None:
        """Write `value`, narrowed to 8 bits, at `position`."""
        self.ir.store(self.ir.trunc(self.integer(value), BYTE), self.offset(pointer, position))

    def put_long(self, value: Value | int, pointer: Value, position: Value | int) -> None:
        """Write `value`, of 64 bits, at `position`."""
        address = self.offset(pointer, self.mul(position, 8))
        self.ir.store(self.integer(value), self.ir.bitcast(address, I64.as_pointer()))

    def one_bits(self, value: Value) -> Value:
        """How many bits of a 64-bit integer are set."""
        return self.call("llvm.ctpop.i64", I64, [value])

    def first_bit(self, value: Value) -> Value:
        """The place of the lowest bit that is set, of a 64-bit integer that is not 0."""
        return self.call("llvm.cttz.i64", I64, [value, ir.IntType(1)(1)])

    def one_if(self, condition: Value) -> Value:
        """1 where `condition` holds, else 0."""
        return self.ir.zext(condition, I64)

    def only_if(self, condition: Value, value: Value) -> Value:
        """`value` where `condition` holds, else 0: never a branch, since nobody could predict it."""
        return self.ir.and_(self.ir.sext(condition, I64), value)

    def indices(self, pointer: Value, position: Value | int, lanes: int, size: int = 4) -> Value:
        """`lanes` indices of `size` bytes from `position` on, widened to 32 bits."""
        address, kind = self.offset(pointer, self.mul(position, size)), ir.VectorType(ir.IntType(8 * size), lanes)
        found = self.ir.load(self.ir.bitcast(address, kind.as_pointer()), align=size)
        return found if size == 4 else self.ir.zext(found, ir.VectorType(I32, lanes))

    def put_indices(self, values: Value, pointer: Value, position: Value | int, size: int = 4) -> None:
        """Write the lanes of `values`, 32-bit indices, narrowed to `size` bytes, from `position` on."""
        kind = ir.VectorType(ir.IntType(8 * size), values.type.count)
        address = self.ir.bitcast(self.offset(pointer, self.mul(position, size)), kind.as_pointer())
        self.ir.store(values if size == 4 else self.ir.trunc(values, kind), address, align=size)

    def splat_index(self, value: Value, lanes: int) -> Value:
        """`value`, narrowed to 32 bits, in every lane."""
        undefined = ir.Constant(ir.VectorType(I32, lanes), ir.Undefined)
        first = self.ir.insert_element(undefined, self.ir.trunc(value, I32), I32(0))
        return self.ir.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    # -- vectors

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
        level = []
        for first in range(0, len(indices), BLOCK):
            part = ir.Constant(vector(BLOCK), ir.Undefined)
            for lane, index in enumerate(indices[first : first + BLOCK]):
                part = self.ir.insert_element(part, self.load(self.floats(pointer, index), 1), I32(lane))
            level.append(part)
        return self.joined(level)

    def joined(self, vectors: Sequence[Value]) -> Value:
        """The lanes of `vectors`, a power of two of them, one after another."""
        level = list(vectors)
        while len(level) > 1:
            width = 2 * self.lanes_of(level[0])
            level = [self.shuffle(*pair, range(width)) for pair in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    def permuted(self, value: Value, lanes: Value, isa: str) -> Value:
        """The lanes of `value` that `lanes`, 32-bit integers, name."""
        name = {"avx512": "llvm.x86.avx512.permvar.sf.512", "avx2": "llvm.x86.avx2.permps"}[isa]
        return self.call(name, value.type, [value, lanes])

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
        return ir.Constant(F32, 0.0) if lanes == 1 else ir.Constant(vector(lanes), [0.0] * lanes)

    def lanes_of(self, value: Value) -> int:
        """How many lanes `value` has."""
        return 1 if isinstance(value.type, ir.FloatType) else int(value.type.count)

    def splat(self, scalar: Value, lanes: int) -> Value:
        """`scalar` in every lane."""
        if lanes == 1:
            return scalar
        undefined = ir.Constant(vector(lanes), ir.Undefined)
        first = self.ir.insert_element(undefined, scalar, I32(0))
        return self.ir.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def shuffle(self, left: Value, right: Value, lanes: Sequence[int]) -> Value:
        """Lanes picked from `left` followed by `right`."""
        return self.ir.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))

    def call(self, name: str, result: Any, arguments: Sequence[Value], **options: Any) -> Value:
        """Call the LLVM intrinsic or external function `name`."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.ir.call(function, list(arguments), **options)

    def fma(self, left: Value, right: Value, addend: Value) -> Value:
        """left * right + addend, rounded once."""
        return self.call(f"llvm.fma.{_suffix(addend.type)}", addend.type, [left, right, addend])

    def relu(self, value: Value, lanes: int) -> Value:
        """max(value, 0), NaN kept."""
        zero = self.zero(lanes)
        return self.ir.select(self.ir.fcmp_ordered("<", value, zero), zero, value)

    def sum_of(self, value: Value) -> Value:
        """The sum of the lanes of `value`: of its halves, of theirs, and so on."""
        lanes = self.lanes_of(value)
        while lanes > 1:
            lanes //= 2
            halves = [self.shuffle(value, value, range(start, start + lanes)) for start in (0, lanes)]
            value = self.ir.fadd(*halves)
        return self.ir.extract_element(value, I32(0))

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
        bits = ir.VectorType(I32, lanes)
        undefined = ir.Constant(bits, ir.Undefined)
        first = self.ir.insert_element(undefined, self.ir.trunc(filled, I32), I32(0))
        bound = self.ir.shuffle_vector(first, undefined, ir.Constant(bits, [0] * lanes))
        return self.ir.icmp_signed("<", ir.Constant(bits, list(range(lanes))), bound)

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

    def prefetch(self, pointer: Value) -> None:
        """Ask for the cache line at `pointer`, into L2: L1 belongs to the tile at hand."""
        self.call("llvm.prefetch.p0", VOID, [pointer, I32(0), I32(2), I32(1)])

    # -- control

    @contextmanager
    def loop(
        self, start: Value | int, stop: Value | int, step: Value | int = 1, carried: Sequence[Value] = ()
    ) -> Iterator[Loop]:
        """``for index in range(start, stop, step)``; after it, `carried` holds the last values and `index` the first not run."""
        stop = self.integer(stop)
        with self._turns(
            self.integer(start), carried, lambda index: self.less(index, stop), lambda index: self.add(index, step)
        ) as running:
            yield running

    @contextmanager
    def scan(self, start: Value, stop: Value, goes_on: Callable[[Value], Value]) -> Iterator[Loop]:
        """``for index in range(start, stop): if not goes_on(index): break``; after it, `index` is the first not run."""
        build = self.ir
        before = build.block
        head, test, body, done = (build.append_basic_block(name) for name in ("head", "test", "body", "after"))
        build.branch(head)
        build.position_at_end(head)
        index = build.phi(I64)
        index.add_incoming(start, before)
        build.cbranch(self.less(index, stop), test, done)
        build.position_at_end(test)
        build.cbranch(goes_on(index), body, done)
        build.position_at_end(body)
        yield Loop(index, [])
        index.add_incoming(self.add(index, 1), build.block)
        build.branch(head)
        build.position_at_end(done)

    def advance(self, start: Value, passed: Callable[[Value], Value]) -> Value:
        """The first index from `start` on that is not passed: `passed` tells for as many as it has lanes.

        Where it is true in one lane, it is true in those before. Nobody can predict how many lanes there are, but that
        they are not all is a safe bet: this costs a fraction of a loop that ends at the first.
        """
        build = self.ir
        before = build.block
        body, done = (build.append_basic_block(name) for name in ("advance", "after"))
        build.branch(body)
        build.position_at_end(body)
        index = build.phi(I64)
        index.add_incoming(start, before)
        mask = passed(index)
        lanes = int(mask.type.count)
        bits = build.bitcast(mask, ir.IntType(lanes))
        count = build.zext(self.call(f"llvm.ctpop.i{lanes}", bits.type, [bits]), I64)
        following = self.add(index, count)
        index.add_incoming(following, build.block)
        build.cbranch(self.equal(count, lanes), body, done)
        build.position_at_end(done)
        return following

    @contextmanager
    def _turns(
        self, start: Value, carried: Sequence[Value], going: Callable[[Value], Value], after: Callable[[Value], Value]
    ) -> Iterator[Loop]:
        build = self.ir
        before = build.block
        head, body, done = (build.append_basic_block(name) for name in ("head", "body", "after"))
        build.branch(head)
        build.position_at_end(head)
        index = build.phi(I64)
        index.add_incoming(start, before)
        values = [build.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        build.cbranch(going(index), body, done)
        build.position_at_end(body)
        running = Loop(index, values)
        yield running
        index.add_incoming(after(index), build.block)
        for phi, value in zip(values, running.following, strict=True):
            phi.add_incoming(value, build.block)
        build.branch(head)
        build.position_at_end(done)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Run the enclosed code if `condition`."""
        with self.ir.if_then(condition):
            yield

    def either(self, values: tuple[Value, Value], blocks: tuple[Value, Value]) -> Value:
        """The first value when control came from the first block, the second when from the second."""
        phi = self.ir.phi(values[0].type)
        for value, block in zip(values, blocks, strict=True):
            phi.add_incoming(value, block)
        return phi

    def finish(self) -> None:
        """Return from the function."""
        self.ir.ret_void()


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
