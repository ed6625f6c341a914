"""The walk over a sparse matrix in cache-sized tiles of columns: each row group gives a short run of its grains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from pollard.kernels.emit.frame import Arguments
from pollard.kernels.simd import Code, Value
from pollard.kernels.spec import KernelSpec

AHEAD = 8  # row groups from now whose grains are asked for; tile pointers are padded by as many entries
LINE = 64


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
    body: Callable[[Tile, Value, Value, Value], None],
    tiles: tuple[Value | int, Value] | None = None,
    on_tile: tuple[Callable[[Tile], None], Callable[[Tile], None]] | None = None,
) -> None:
    """Run ``body(tile, group, start, end)`` for each tile and row group: grains ``start:end`` lie in both.

    Tile t of group i begins at ``tiles[t * STRIDE + i]`` and ends ``END`` entries later. Untiled, that is the row pointers
    themselves with a stride of 0. `on_tile` is run before and after each tile.
    """
    first, last = tiles or (0, arguments["TILES"])
    with code.loop(first, last) as turn:
        tile = Tile(turn.index, code.equal(turn.index, 0), code.equal(turn.index, code.sub(arguments["TILES"], 1)))
        if on_tile:
            on_tile[0](tile)
        begins = code.offset(arguments["tiles"], code.mul(code.mul(turn.index, arguments["STRIDE"]), 4))
        ends = code.offset(begins, code.mul(arguments["END"], 4))
        with code.loop(*groups) as group:
            start, end = code.index_at(begins, group.index), code.index_at(ends, group.index)
            if spec.tiled:
                _ask_ahead(code, spec, arguments, code.index_at(begins, code.add(group.index, AHEAD)))
            # A row with nothing in this tile still has to be written once, with its bias.
            idle = code.ir.and_(code.equal(start, end), ir.Constant(ir.IntType(1), 0 if spec.relu else 1))
            needed = code.ir.or_(tile.is_first, code.ir.not_(idle)) if spec.operation == "gather" else code.ir.not_(idle)
            with code.when(needed):
                body(tile, group.index, start, end)
        if on_tile:
            on_tile[1](tile)


def _ask_ahead(code: Code, spec: KernelSpec, arguments: Arguments, position: Value) -> None:
    # Short runs out of long rows defeat the hardware's prefetcher, and touch a new page nearly each.
    columns = code.offset(arguments["columns"], code.mul(position, 4))
    code.prefetch(columns)
    if spec.operation != "sample":
        values = code.floats(arguments["values"], code.mul(position, spec.rows))
        for line in range(min(4, spec.rows) if spec.rows > 1 else 1):
            code.prefetch(code.offset(values, line * LINE))
