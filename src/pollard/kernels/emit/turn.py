"""Index work on a whole topology: where tiles of columns begin in each row group, and the same grains by columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.search import Run, search
from pollard.kernels.emit.tiles import run_of_groups
from pollard.kernels.simd import Code, Value
from pollard.kernels.spec import KernelSpec

CUT = ("pointers", "columns", "table", "bounds", "PASSES", "TILES", "GROUPS", "WIDTH")
COUNT = ("tiles", "columns", "counts", "PASSES", "STRIDE", "END", "GROUPS")
# `next` holds where the next grain of each column goes.
TURN = ("tiles", "columns", "next", "groups", "permutation", "PASSES", "STRIDE", "END", "GROUPS")


def cut(spec: KernelSpec) -> ir.Module:
    """The module that finds the first grain of each tile in each row group; a unit of work is a run of row groups."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            run = Run.of(code, arguments["pointers"], row.index)

            def put(value: Value, tile: Value | int, row: Value = row.index) -> None:
                code.put_index(value, arguments["table"], code.add(code.mul(tile, arguments["GROUPS"]), row))

            put(run.start, 0)
            put(run.end, arguments["TILES"])
            with code.ir.if_else(code.less(run.start, run.end)) as (some, none):
                with some, code.loop(1, arguments["TILES"]) as tile:
                    border = code.mul(tile.index, arguments["WIDTH"])

                    def before(position: Value, border: Value = border) -> Value:
                        return code.less(code.index_at(arguments["columns"], position), border)

                    put(code.add(run.start, search(code, run, before)), tile.index)
                with none, code.loop(1, arguments["TILES"]) as tile:
                    put(run.start, tile.index)

    return kernel_module(CUT, unit, x86=spec.isa != "neon")


def count(spec: KernelSpec) -> ir.Module:
    """The module that counts the grains of each column; a unit of work is a tile of columns."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        with _rows(code, arguments, work[0]) as (_, run), code.loop(run.start, run.end) as grain:
            column = code.index_at(arguments["columns"], grain.index)
            code.put_index(code.add(code.index_at(arguments["counts"], column), 1), arguments["counts"], column)

    return kernel_module(COUNT, unit, x86=spec.isa != "neon")


def turn(spec: KernelSpec) -> ir.Module:
    """The module that appends each grain to its column, row group by row group; a unit of work is a tile of columns."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        with _rows(code, arguments, work[0]) as (row, run), code.loop(run.start, run.end) as grain:
            column = code.index_at(arguments["columns"], grain.index)
            place = code.index_at(arguments["next"], column)
            code.put_index(code.add(place, 1), arguments["next"], column)
            code.put_index(row, arguments["groups"], place)
            code.put_index(grain.index, arguments["permutation"], place)

    return kernel_module(TURN, unit, x86=spec.isa != "neon")


@contextmanager
def _rows(code: Code, arguments: Arguments, tile: Value) -> Iterator[tuple[Value, Run]]:
    # Each row group with the run of its grains that lie in `tile`.
    begins = code.offset(arguments["tiles"], code.mul(code.mul(tile, arguments["STRIDE"]), 4))
    ends = code.offset(begins, code.mul(arguments["END"], 4))
    with code.loop(0, arguments["GROUPS"]) as row:
        yield row.index, Run(code.index_at(begins, row.index), code.index_at(ends, row.index))
