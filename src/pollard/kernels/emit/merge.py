"""Rows that move: what stays is merged with what comes, each row group on its own.

A merge takes branches that nobody can predict, and is still several times faster than a binary search for each grain.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.search import Run
from pollard.kernels.emit.tiles import run_of_groups
from pollard.kernels.simd import Code, Value
from pollard.kernels.spec import KernelSpec

# kept: indices of the grains that stay; grown, ranks: 64-bit too. `stays` and `comes` hold where each row group begins in
# them. fresh, source: the new columns, and where each grain was. clash: set where a grain both stays and comes.
REWIRE = (
    "kept", "grown", "columns", "stays", "comes", "fresh", "source", "clash", "bounds", "PASSES", "WIDTH",
)  # fmt: skip
ABSENT = ("kept", "ranks", "columns", "stays", "comes", "positions", "bounds", "PASSES", "WIDTH")


def rewire(spec: KernelSpec) -> ir.Module:
    """The module that merges kept and grown grains into new rows; a unit of work is a run of row groups."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            stays, comes = (Run.of(code, arguments[name], row.index) for name in ("stays", "comes"))
            _merge(code, arguments, (stays, comes), code.mul(row.index, arguments["WIDTH"]))

    return kernel_module(REWIRE, unit, x86=spec.isa != "neon")


def _merge(code: Code, arguments: Arguments, runs: tuple[Run, Run], base: Value) -> None:
    stays, comes = runs

    def column(position: Value) -> Value:
        return code.index_at(arguments["columns"], code.long_at(arguments["kept"], position))

    def put(place: Value, column: Value, source: Value | int) -> None:
        code.put_index(column, arguments["fresh"], place)
        code.put_index(source, arguments["source"], place)

    def keep(position: Value, came: Value) -> None:
        put(code.add(position, came), column(position), code.long_at(arguments["kept"], position))

    with code.loop(comes.start, comes.end, carried=[stays.start]) as each:
        (first,) = each.carried
        wanted = code.sub(code.long_at(arguments["grown"], each.index), base)
        with code.scan(first, stays.end, lambda position: code.less(column(position), wanted)) as kept:
            keep(kept.index, each.index)
        with code.scan(kept.index, stays.end, lambda position: code.equal(column(position), wanted)) as both:
            code.put_index(1, arguments["clash"], 0)
        put(code.add(both.index, each.index), wanted, -1)
        each.carry([both.index])
    with code.loop(each.carried[0], stays.end) as kept:
        keep(kept.index, comes.end)


def absent(spec: KernelSpec) -> ir.Module:
    """The module that turns ranks among the grains that are not there into positions; a unit is a run of row groups.

    The rank of an absent grain is how many absent ones are below it: all below it, but for those that are there.
    """

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        def column(position: Value) -> Value:
            grain = code.long_at(arguments["kept"], position) if spec.permuted else position
            return code.index_at(arguments["columns"], grain)

        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            stays, comes = (Run.of(code, arguments[name], row.index) for name in ("stays", "comes"))
            base = code.mul(row.index, arguments["WIDTH"])
            with code.loop(comes.start, comes.end, carried=[stays.start]) as each:
                # The column if no grain of this row were there: ranks of earlier rows count all of them but those there.
                free = code.sub(code.long_at(arguments["ranks"], each.index), code.sub(base, stays.start))

                def passed(position: Value, free: Value = free) -> Value:
                    reached = code.add(free, code.sub(position, stays.start))
                    return code.ir.not_(code.less(reached, column(position)))

                with code.scan(each.carried[0], stays.end, passed) as taken:
                    pass
                place = code.add(code.add(base, free), code.sub(taken.index, stays.start))
                code.put_long(place, arguments["positions"], each.index)
                each.carry([taken.index])

    return kernel_module(ABSENT, unit, x86=spec.isa != "neon")
