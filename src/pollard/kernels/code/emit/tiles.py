"""The walk over a sparse matrix in cache-sized tiles of columns: each row group gives a short run of its grains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pollard.kernels.code.emit.frame import Arguments
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

LINE = 64
AHEAD = 8192  # bytes of a stream that is read once: what the hardware asks for by itself comes too late
NEAR = 4  # row groups ahead of the one at hand
ABREAST = 4  # columns of a grain, whose code is written out, at most


@dataclass(frozen=True, slots=True)
class Tile:
    """The tile at hand."""

    index: Value
    is_first: Value
    is_last: Value


def each_tile(
    code: Code,
    spec: KernelSpec,
    arguments: Arguments,
    groups: tuple[Value, Value],
    body: Callable[[Tile, Value, tuple[Value, Value]], None],
    *,
    tiles: tuple[Value, Value] | None = None,
) -> None:
    """Run ``body(tile, group, (start, end))`` for each tile and row group: grains ``start:end`` lie in both.

    Tile t of group i begins at ``tiles[t * STRIDE + i]`` and ends ``END`` entries later; untiled, these are the row pointers
    themselves with a stride of 0; where grains lie tile by tile, a group ends where the next begins. All tiles are walked unless `tiles` gives a first and a last.
    """
    with code.loop(*(tiles or (0, arguments["TILES"]))) as turn:
        tile = Tile(turn.index, code.equal(turn.index, 0), code.equal(turn.index, code.sub(arguments["TILES"], 1)))
        begins = code.offset(arguments["tiles"], code.mul(code.mul(turn.index, arguments["STRIDE"]), 4))
        ends = code.offset(begins, code.mul(arguments["END"], 4))
        with code.loop(*groups) as group:
            start, end = code.index_at(begins, group.index), code.index_at(ends, group.index)
            with code.when(_has_work(code, spec, tile, code.less(start, end))):
                if spec.tiled:
                    _ask_ahead(code, spec, arguments, end)
                    _ask_near(code, spec, arguments, begins, code.minimum(code.add(group.index, NEAR), groups[1]))
                body(tile, group.index, (start, end))


def over_columns(
    code: Code, spec: KernelSpec, sums: list[Value], body: Callable[[Value, int, list[Value]], list[Value]]
) -> list[Value]:
    """What `sums` become by ``body(first, count, sums)`` for the columns of a grain, a few of them at a time."""
    count = max(part for part in range(1, ABREAST + 1) if spec.columns % part == 0)
    if count == spec.columns:
        return body(code.integer(0), count, sums)
    with code.loop(0, spec.columns, count, sums) as few:
        few.carry(body(few.index, count, few.carried))
    return few.carried


def run_of_groups(code: Code, arguments: Arguments, chunk: Value, turn: Value) -> tuple[Value, Value]:
    """The row groups that `chunk` takes in `turn`: ``bounds`` holds where each such run begins, and the end."""
    position = code.add(code.mul(chunk, arguments["PASSES"]), turn)
    return code.index_at(arguments["bounds"], position), code.index_at(arguments["bounds"], code.add(position, 1))


def ask_for(code: Code, pointer: Value, count: int) -> None:
    """Ask for each cache line of the `count` bytes that lie AHEAD of `pointer`, in a stream that is read once."""
    for line in range(0, count, LINE):
        code.prefetch(code.offset(pointer, AHEAD + line))


def ask_for_values(code: Code, spec: KernelSpec, arguments: Arguments, first: Value, grains: int) -> None:
    """Ask for the values that lie AHEAD of those of `grains` from the `first` on."""
    size, values = spec.rows * spec.columns, NUMBERS[spec.values]
    ask_for(code, values.at(code, arguments["values"], code.mul(first, size)), grains * size * values.bytes)


def ask_for_columns(code: Code, spec: KernelSpec, arguments: Arguments, first: Value, grains: int) -> None:
    """Ask for the indices that lie AHEAD of those of `grains` from the `first` on."""
    ask_for(code, code.offset(arguments["columns"], code.mul(first, spec.index)), grains * spec.index)


def _has_work(code: Code, spec: KernelSpec, tile: Tile, grains: Value) -> Value:
    # Every row of an output has to be written once, though it keeps nothing: by its first tile, by its last where that does more.
    if spec.operation not in ("gather", "convolve", "skinny"):
        return grains
    needed = code.ir.or_(grains, tile.is_first)
    return code.ir.or_(needed, tile.is_last) if spec.activation or spec.rests else needed


def _ask_near(code: Code, spec: KernelSpec, arguments: Arguments, begins: Value, group: Value) -> None:
    # Where a loop ends comes as a surprise, after which the first numbers of the next row would be waited for: they are in L2.
    start = code.index_at(begins, group)
    columns = code.offset(arguments["columns"], code.mul(start, spec.index))
    values = NUMBERS[spec.values].at(code, arguments["values"], code.mul(start, spec.rows * spec.columns))
    for pointer in (columns, values):
        code.prefetch(pointer, near=True)


def _ask_ahead(code: Code, spec: KernelSpec, arguments: Arguments, end: Value) -> None:
    # The next tile goes on where this one ends in each row: short runs, too far apart for the hardware's prefetcher.
    code.prefetch(code.offset(code.offset(arguments["columns"], code.mul(end, spec.index)), LINE - 4))
    size = NUMBERS[spec.values].bytes
    values = code.offset(code.offset(arguments["values"], code.mul(end, spec.rows * spec.columns * size)), LINE - 4)
    for line in range(max(1, min(spec.rows * spec.columns, 4) * size // 4)):
        code.prefetch(code.offset(values, line * LINE))
