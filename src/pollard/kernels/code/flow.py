"""Integers, addresses, calls and loops: what a kernel is written in but for its vectors.

Addresses are byte pointers, integers are 64 bits.
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
VOID = ir.VoidType()
Value = Any  # an llvmlite value: the library ships no types


class Loop:
    """A running loop: its index, the values it carries from turn to turn, and what they become."""

    def __init__(self, index: Value, carried: list[Value]) -> None:
        self.index, self.carried, self.following = index, carried, carried

    def carry(self, values: Sequence[Value]) -> None:
        """Give the carried values of the next turn."""
        self.following = list(values)


class Flow:
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

    def room(self, count: int, align: int = 8) -> Value:
        """Memory of `count` bytes, until the function returns."""
        with self.ir.goto_entry_block():
            place = self.ir.alloca(BYTE, count)
        place.align = align
        return place

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

    def without_first_bit(self, value: Value) -> Value:
        """`value` with that bit cleared."""
        return self.ir.and_(value, self.sub(value, 1))

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

    def call(self, name: str, result: Any, arguments: Sequence[Value], **options: Any) -> Value:
        """Call the LLVM intrinsic or external function `name`."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.ir.call(function, list(arguments), **options)

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
    def each_bit(self, bits: Value, start: Value) -> Iterator[tuple[Value, Value]]:
        """The place of each bit of a 64-bit integer that is set, the lowest first, and their number from `start` on; after it, that of the next."""
        with self.loop(0, self.one_bits(bits), carried=[bits, start]) as turn:
            left, number = turn.carried
            yield self.first_bit(left), number
            turn.carry([self.without_first_bit(left), self.add(number, 1)])

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


__all__ = ["BYTE", "I32", "I64", "POINTER", "VOID", "Flow", "Loop", "Value"]
