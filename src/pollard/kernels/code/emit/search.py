"""Searches in kernels: a row group is held where a whole vector may be read past its end, and gone through by vectors."""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from pollard.formats.indices import LIMIT
from pollard.kernels.code.simd import VOID, Code, Value

COPIED = 8  # indices that are widened or narrowed at a time


class Run(NamedTuple):
    """Entries `start` to `end` of an array: what belongs to one row group."""

    start: Value
    end: Value

    @classmethod
    def of(cls, code: Code, pointers: Value, row: Value) -> Run:
        """The run of `row`, where `pointers` holds the beginning of each, and the end."""
        return cls(code.index_at(pointers, row), code.index_at(pointers, code.add(row, 1)))

    def length(self, code: Code) -> Value:
        """How many entries."""
        return code.sub(self.end, self.start)


def copy_indices(code: Code, source: Value, target: Value, count: Value, *, sizes: tuple[int, int] = (4, 4)) -> None:
    """Copy `count` indices to other memory; sizes: bytes of one in each."""
    here, there = sizes
    if here == there:
        code.call("llvm.memcpy.p0.p0.i64", VOID, [target, source, code.mul(count, here), ir.IntType(1)(0)])
        return
    with code.loop(0, code.sub(count, COPIED - 1), COPIED) as some:
        code.put_indices(code.indices(source, some.index, COPIED, here), target, some.index, there)
    with code.loop(some.index, count) as each:
        code.put_index(code.index_at(source, each.index, here), target, each.index, there)


def hold(code: Code, columns: tuple[Value, int], run: Run, scratch: Value, lanes: int) -> None:
    """Copy the columns of `run` to `scratch`, as 32-bit indices, and close them; columns: where they are, bytes of one."""
    source, size = columns
    copy_indices(code, code.offset(source, code.mul(run.start, size)), scratch, run.length(code), sizes=(size, 4))
    close(code, scratch, run.length(code), lanes)


def close(code: Code, columns: Value, length: Value, lanes: int) -> None:
    """Put a vector of what is above every column after the last of `columns`: no search goes past it."""
    code.put_indices(code.splat_index(code.integer(LIMIT), lanes), columns, length)


def pass_below(
    code: Code,
    columns: Value,
    search: tuple[Value, Value],
    lanes: int,
    copying: tuple[tuple[Value, ...], tuple[Value, ...], Value] | None = None,
) -> Value:
    """The first place, from the first of `search` on, where closed `columns` are not below the second of `search`.

    copying: arrays from which all that is passed is copied to others, so many places further on, in whole vectors.
    """
    start, wanted = search
    border = code.splat_index(wanted, lanes)

    def passed(position: Value) -> Value:
        for source, target in zip(*copying[:2], strict=True) if copying else ():
            place = code.add(position, copying[2]) if copying else position
            code.put_indices(code.indices(source, position, lanes), target, place)
        return code.ir.icmp_signed("<", code.indices(columns, position, lanes), border)

    return code.advance(start, passed)
