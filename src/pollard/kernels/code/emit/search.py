"""Searches in kernels: a row group is held where a whole vector may be read past its end, and gone through by vectors."""

from __future__ import annotations

from typing import NamedTuple

from pollard.formats.indices import LIMIT
from pollard.kernels.code.simd import Code, Value


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


def hold(code: Code, columns: Value, run: Run, scratch: Value, lanes: int) -> None:
    """Copy the `columns` of `run` to `scratch`, and close them."""
    code.copy_indices(code.offset(columns, code.mul(run.start, 4)), scratch, run.length(code))
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
