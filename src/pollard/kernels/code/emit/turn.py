"""Index work on a whole topology: where tiles of columns begin in each row group, and the same grains by columns in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.search import Run, hold, pass_below
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# scratch: for each unit of work ROOM indices, which hold a row group and one vector more.
CUT = ("pointers", "columns", "table", "scratch", "bounds", "PASSES", "TILES", "GROUPS", "WIDTH", "ROOM")
# Row groups are taken HIGH at a time, each of which has counts, and places, of its own for every column.
COUNT = ("tiles", "columns", "counts", "PASSES", "GROUPS", "IN", "HIGH")
# at: the first grain of each tile in each row group that has not been placed yet; next: where the next grain of each column
# goes. A tile of WIDE columns is walked STEP columns at a time.
TURN = (
    "pointers", "columns", "at", "next", "groups", "permutation", "PASSES", "GROUPS", "IN", "HIGH", "WIDE", "STEP",
)  # fmt: skip


def cut(spec: KernelSpec) -> ir.Module:
    """The module that finds the first grain of each tile in each row group; a unit of work is a run of row groups."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        scratch = code.offset(arguments["scratch"], code.mul(code.mul(work[0], arguments["ROOM"]), 4))
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            run = Run.of(code, arguments["pointers"], row.index)
            hold(code, (arguments["columns"], spec.index), run, scratch, lanes)

            def put(value: Value, tile: Value | int, row: Value = row.index) -> None:
                code.put_index(value, arguments["table"], code.add(code.mul(tile, arguments["GROUPS"]), row))

            put(run.start, 0)
            put(run.end, arguments["TILES"])
            with code.loop(1, arguments["TILES"], carried=[code.integer(0)]) as tile:
                border = code.mul(tile.index, arguments["WIDTH"])
                passed = pass_below(code, scratch, (tile.carried[0], border), lanes)
                put(code.add(run.start, passed), tile.index)
                tile.carry([passed])

    return kernel_module(CUT, unit, x86=spec.isa != "neon")


def count(spec: KernelSpec) -> ir.Module:
    """The module that counts the grains of each column; a unit of work is a tile of columns."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        begins = _row_of(code, arguments["tiles"], work[0], arguments["GROUPS"])
        ends = code.offset(begins, code.mul(arguments["GROUPS"], 4))
        with _high_tiles(code, arguments, "counts") as (counts, rows), code.loop(*rows) as row:
            run = Run(code.index_at(begins, row.index), code.index_at(ends, row.index))
            with code.loop(run.start, run.end) as grain:
                column = code.index_at(arguments["columns"], grain.index, spec.index)
                code.put_index(code.add(code.index_at(counts, column), 1), counts, column)

    return kernel_module(COUNT, unit, x86=spec.isa != "neon")


def turn(spec: KernelSpec) -> ir.Module:
    """The module that appends each grain to its column, row group by row group; a unit of work is a tile of columns."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        at = _row_of(code, arguments["at"], work[0], arguments["GROUPS"])
        first = code.mul(work[0], arguments["WIDE"])
        last = code.minimum(code.add(first, arguments["WIDE"]), arguments["IN"])
        with (
            _high_tiles(code, arguments, "next") as (following, rows),
            code.loop(first, last, arguments["STEP"]) as step,
        ):
            border = code.minimum(code.add(step.index, arguments["STEP"]), last)
            with code.loop(*rows) as row:
                _append(code, arguments, following, (at, row.index), border, spec=spec)

    return kernel_module(TURN, unit, x86=spec.isa != "neon")


@contextmanager
def _high_tiles(code: Code, arguments: Arguments, table: str) -> Iterator[tuple[Value, tuple[Value, Value]]]:
    # Tile after tile of row groups: its part of `table`, which has an entry for each column, and its row groups.
    with code.loop(0, arguments["GROUPS"], arguments["HIGH"]) as tile:
        part = _row_of(code, arguments[table], code.ir.sdiv(tile.index, arguments["HIGH"]), arguments["IN"])
        yield part, (tile.index, code.minimum(code.add(tile.index, arguments["HIGH"]), arguments["GROUPS"]))


def _append(
    code: Code, arguments: Arguments, following: Value, cursor: tuple[Value, Value], border: Value, *, spec: KernelSpec
) -> None:
    # The grains of a row group up to `border`, from where it was left at the border before.
    at, row = cursor

    def column(position: Value) -> Value:
        return code.index_at(arguments["columns"], position, spec.index)

    end = Run.of(code, arguments["pointers"], row).end
    with code.scan(code.index_at(at, row), end, lambda position: code.less(column(position), border)) as grain:
        place = code.index_at(following, column(grain.index))
        code.put_index(code.add(place, 1), following, column(grain.index))
        code.put_index(row, arguments["groups"], place, spec.size)
        code.put_index(grain.index, arguments["permutation"], place)
    code.put_index(grain.index, at, row)


def _row_of(code: Code, table: Value, row: Value, width: Value) -> Value:
    return code.offset(table, code.mul(code.mul(row, width), 4))
