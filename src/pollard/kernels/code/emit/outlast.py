"""Weights gone through once: which of them, times numbers of their row and their column, are above 1, whichever numbers these are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.simd import F32, I32, I64, VOID, Code, Value, vector
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# weights: rows of COLUMNS fp32 numbers. a, b: for each of BARS, a number of each row, ROWS in all, and of each column; `between`
# has one more. found, values: room for every weight, which each row fills from its first on with columns and weights. counts: two
# of each row, how many these are, and (`between`) how many pass all for sure. LOW, HIGH: bits of fp32 numbers; a product
# above HIGH is above 1 for sure, and one above LOW may be.
OUTLAST = ("weights", "a", "b", "found", "values", "counts", "PASSES", "ROWS", "COLUMNS", "BARS", "LOW", "HIGH")


class Lanes(NamedTuple):
    """Some weights of a row, from the column `first` on: which of them count, all where `mask` is None."""

    row: Value
    first: Value
    weights: Value
    load: Callable[[Value], Value]
    mask: Value | None


def outlast(spec: KernelSpec) -> ir.Module:
    """The module that lists the weights whose products may all be above 1; a unit of work is a row.

    Of one that is not above it for sure, the ones' complement of the column is listed.
    """

    def judged(code: Code, arguments: Arguments, some: Lanes) -> tuple[Value, Value, Value]:
        least = _least(code, arguments, some)
        sure = _above(code, arguments, "HIGH", least)
        return _above(code, arguments, "LOW", least), sure, I64(0)

    return _walk(spec, judged)


def between(spec: KernelSpec) -> ir.Module:
    """The module that lists the weights whose products may all be above 1, but not for sure with the last numbers too; counts the
    others; a unit of work is a row. Of one that is not above 1 for sure with the first numbers, the ones' complement is listed.
    """

    def judged(code: Code, arguments: Arguments, some: Lanes) -> tuple[Value, Value, Value]:
        least, top = _least(code, arguments, some), _product(code, arguments, some, arguments["BARS"])
        known = _above(code, arguments, "HIGH", least)
        sure = code.ir.and_(known, _above(code, arguments, "HIGH", top))
        listed = code.ir.and_(_above(code, arguments, "LOW", least), code.ir.not_(sure))
        counted = sure if some.mask is None else code.ir.and_(sure, some.mask)
        return listed, known, code.one_bits(code.bits_of(counted))

    return _walk(spec, judged)


def _walk(spec: KernelSpec, judged: Callable[[Code, Arguments, Lanes], tuple[Value, Value, Value]]) -> ir.Module:
    """judged: which lanes are listed, which of them with their own column, and how many more are counted."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        width, start = arguments["COLUMNS"], code.mul(work[0], arguments["COLUMNS"])
        whole = code.sub(width, code.ir.srem(width, code.integer(lanes)))
        rest = code.lane_mask(code.sub(width, whole), lanes)
        row = code.floats(arguments["weights"], start)
        rooms = [code.floats(arguments[name], start) for name in ("found", "values")]

        def step(first: Value, mask: Value | None, carried: list[Value]) -> list[Value]:
            def load(pointer: Value) -> Value:
                return code.load(pointer, lanes) if mask is None else code.masked_load(pointer, mask, lanes)

            some = Lanes(work[0], first, load(code.floats(row, first)), load, mask)
            listed, sure, counted = judged(code, arguments, some)
            listed = listed if mask is None else code.ir.and_(listed, mask)
            columns = code.ir.add(
                code.splat_index(first, lanes), ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
            )
            columns = code.ir.select(sure, columns, code.ir.not_(columns))
            # Other instruction sets have none that lays lanes side by side.
            press = _pressed if spec.isa == "avx512" else _one_by_one
            press(code, (columns, code.ir.bitcast(some.weights, columns.type)), listed, rooms, carried[0])
            end = code.add(carried[0], code.one_bits(code.bits_of(listed)))
            return [end, code.add(carried[1], counted)]

        with code.loop(0, whole, lanes, carried=[I64(0), I64(0)]) as each:
            each.carry(step(each.index, None, each.carried))
        for place, count in enumerate(step(each.index, rest, each.carried)):
            code.put_index(count, arguments["counts"], code.add(code.mul(work[0], 2), place))

    return kernel_module(OUTLAST, unit, x86=spec.isa != "neon")


def _least(code: Code, arguments: Arguments, some: Lanes) -> Value:
    """The least product of each weight, infinity where there are no numbers to multiply it with."""
    kind = some.weights.type
    with code.loop(0, arguments["BARS"], carried=[ir.Constant(kind, [ir.Constant(F32, math.inf)] * kind.count)]) as bar:
        product = _product(code, arguments, some, bar.index)
        less = code.ir.fcmp_ordered("<", product, bar.carried[0])
        bar.carry([code.ir.select(less, product, bar.carried[0])])
    return bar.carried[0]


def _product(code: Code, arguments: Arguments, some: Lanes, bar: Value) -> Value:
    """The magnitudes of weights, times the numbers of their row and their columns."""
    lanes = code.lanes_of(some.weights)
    magnitudes = code.call(f"llvm.fabs.v{lanes}f32", vector(lanes), [some.weights])
    own = code.load(code.floats(arguments["a"], code.add(code.mul(bar, arguments["ROWS"]), some.row)), 1)
    theirs = some.load(code.floats(arguments["b"], code.add(code.mul(bar, arguments["COLUMNS"]), some.first)))
    return code.ir.fmul(code.ir.fmul(code.splat(own, lanes), theirs), magnitudes)


def _above(code: Code, arguments: Arguments, bound: str, products: Value) -> Value:
    bounds = code.ir.bitcast(code.splat_index(arguments[bound], code.lanes_of(products)), products.type)
    return code.ir.fcmp_ordered(">", products, bounds)


def _pressed(code: Code, values: tuple[Value, Value], mask: Value, rooms: list[Value], start: Value) -> None:
    """Write the lanes of both `values` that are in `mask`, side by side, to both `rooms` from `start` on."""
    for each, room in zip(values, rooms, strict=True):
        name = f"llvm.masked.compressstore.v{each.type.count}i32"
        code.call(name, VOID, [each, code.floats(room, start), mask])


def _one_by_one(code: Code, values: tuple[Value, Value], mask: Value, rooms: list[Value], start: Value) -> None:
    """`_pressed`, a lane at a time."""
    bits = code.bits_of(mask)
    lanes = int(mask.type.count)
    rests = [code.room(4 * lanes) for _ in rooms]
    for each, rest in zip(values, rests, strict=True):
        code.put_indices(each, rest, 0)
    with code.each_bit(bits, start) as (lane, end):
        for rest, room in zip(rests, rooms, strict=True):
            code.put_index(code.index_at(rest, lane), room, end)
