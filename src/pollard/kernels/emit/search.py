"""Binary search in kernels: every query of a row takes the same turns, so that many are under way at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pollard.kernels.simd import Code, Value


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


def search(code: Code, run: Run, goes_on: Callable[[Value], Value]) -> Value:
    """How many entries of a `run` that is not empty `goes_on` holds for: those before the first it does not hold for.

    Where there is one it does not hold for, that is the last entry asked about.
    """
    with code.halving(run.length(code), [run.start]) as turn:
        (low,) = turn.carried
        half = code.ir.lshr(turn.index, code.integer(1))
        probe = code.sub(code.add(low, half), 1)
        turn.carry([code.add(low, code.only_if(goes_on(probe), half))])
    (low,) = turn.carried
    return code.sub(code.add(low, code.one_if(goes_on(low))), run.start)
