"""Flagged entries of a row group pushed together: nobody can predict which they are, so nothing branches on them."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from pollard.kernels.code.emit.search import Run
from pollard.kernels.code.simd import BYTE, I32, Code, Value

# Of the one instruction set that can push the lanes of a vector together.
LANES = 16

# From a position and a number of lanes to the 32-bit indices there: a vector, or a 64-bit integer for one lane.
Entries = Callable[[Value, int], Value]


def press(code: Code, isa: str, flags: Value, run: Run, streams: list[tuple[Entries, Value]]) -> Value:
    """Write what each of `streams` holds at the flagged entries of `run` to where it goes, in order; how many there are.

    flags: a byte for each entry, 0 or 1. What is written to holds one vector more than there are entries.
    """
    start, count = run.start, code.integer(0)
    if isa == "avx512":
        with code.loop(start, code.sub(run.end, LANES - 1), LANES, carried=[count]) as some:
            address = code.ir.bitcast(code.offset(flags, some.index), ir.VectorType(BYTE, LANES).as_pointer())
            flagged = code.ir.trunc(code.ir.load(address, align=1), ir.VectorType(ir.IntType(1), LANES))
            for entries, target in streams:
                code.put_indices(pressed(code, entries(some.index, LANES), flagged), target, some.carried[0])
            some.carry([code.add(some.carried[0], code.one_bits(code.bits_of(flagged)))])
        start, count = some.index, some.carried[0]
    with code.loop(start, run.end, carried=[count]) as each:
        for entries, target in streams:
            code.put_index(entries(each.index, 1), target, each.carried[0])
        each.carry([code.add(each.carried[0], code.byte_at(flags, each.index))])
    (count,) = each.carried
    return count


def pressed(code: Code, values: Value, mask: Value) -> Value:
    """The lanes of `values` that `mask` allows, pushed together to the first ones; for AVX-512 alone."""
    return code.call(f"llvm.x86.avx512.mask.compress.v{LANES}i32", values.type, [values, values, mask])


def entries_of(code: Code, array: Value, size: int) -> Entries:
    """The entries of an array of indices of `size` bytes."""

    def entries(place: Value, lanes: int) -> Value:
        return code.index_at(array, place, size) if lanes == 1 else code.indices(array, place, lanes, size)

    return entries


def places(code: Code) -> Entries:
    """The positions themselves."""

    def entries(place: Value, lanes: int) -> Value:
        if lanes == 1:
            return place
        steps = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        return code.ir.add(code.splat_index(place, lanes), steps)

    return entries
