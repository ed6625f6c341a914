"""``dX = W^T dY``: each row of dY is added, weighted, to the rows of dX that its row of W keeps.

A tile of dX is summed in a scratch block that stays in cache, then written once.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.panels import Panel, each_kind
from pollard.kernels.emit.tiles import Tile, each_tile
from pollard.kernels.simd import Code, Value
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import TARGETS

# `bounds` holds the first tile of each chunk, and one more; WIDTH is the number of columns in a tile.
ARGUMENTS = (
    "tiles", "columns", "values", "x", "y", "scratch", "bounds",
    "TILES", "STRIDE", "END", "GROUPS", "IN", "WIDTH", "LDX", "LDY", "PANELS", "WIDE", "LAST", "CHUNKS", "SCRATCH",
)  # fmt: skip


def scatter(spec: KernelSpec) -> ir.Module:
    """The module of a scatter kernel; a unit of work is a panel of the batch by a chunk of tiles. Here x is dY, y is dX."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, index: Value) -> None:
        panel = code.ir.sdiv(index, arguments["CHUNKS"])
        chunk = code.ir.srem(index, arguments["CHUNKS"])
        counts = (arguments["PANELS"], arguments["WIDE"], arguments["LAST"])
        each_kind(code, spec, lanes, panel, counts, lambda kind: _panel(code, spec, arguments, kind, chunk))

    return kernel_module(spec.isa != "neon", ARGUMENTS, unit)


def _panel(code: Code, spec: KernelSpec, arguments: Arguments, panel: Panel, chunk: Value) -> None:
    tiles = code.index_at(arguments["bounds"], chunk), code.index_at(arguments["bounds"], code.add(chunk, 1))
    if spec.packed:
        rows = code.mul(arguments["GROUPS"], spec.rows)
        x, ldx = code.floats(arguments["x"], code.mul(panel.start, rows)), code.integer(panel.width)
    else:
        x, ldx = code.floats(arguments["x"], panel.start), arguments["LDX"]
    y = code.floats(arguments["y"], panel.start)
    scratch = code.floats(arguments["scratch"], code.mul(arguments.thread, arguments["SCRATCH"]))

    def columns(tile: Tile) -> tuple[Value, Value]:
        first = code.mul(tile.index, arguments["WIDTH"])
        return first, code.sub(code.minimum(code.add(first, arguments["WIDTH"]), arguments["IN"]), first)

    def clear(tile: Tile) -> None:
        with code.loop(0, code.mul(columns(tile)[1], panel.width), panel.lanes) as each:
            code.store(code.zero(panel.lanes), code.floats(scratch, each.index))

    def copy_out(tile: Tile) -> None:
        first, count = columns(tile)
        with code.loop(0, count) as each:
            sums = panel.load(code.floats(scratch, code.mul(each.index, panel.width)), masked=False)
            panel.store(sums, code.floats(y, code.mul(code.add(first, each.index), arguments["LDY"])), masked=True)

    def row_group(tile: Tile, group: Value, start: Value, end: Value) -> None:
        # Columns count from the start of the matrix, the scratch block from the start of the tile.
        first = code.mul(code.mul(tile.index, arguments["WIDTH"]), panel.width)
        origin = code.floats(scratch, code.sub(0, first))
        for offset in range(0, spec.rows, spec.block):
            rows = [code.add(code.mul(group, spec.rows), offset + r) for r in range(spec.block)]
            sources = [code.floats(x, code.mul(row, ldx)) for row in rows]
            upstream = [panel.load(source, masked=not spec.packed) for source in sources]
            _add(code, spec, arguments, panel, origin, (start, end), offset, upstream)

    each_tile(code, spec, arguments, (code.integer(0), arguments["GROUPS"]), row_group, tiles, (clear, copy_out))


def _add(
    code: Code,
    spec: KernelSpec,
    arguments: Arguments,
    panel: Panel,
    origin: Value,
    grains: tuple[Value, Value],
    offset: int,
    upstream: list[list[Value]],
) -> None:
    with code.loop(*grains) as grain:
        target = code.floats(origin, code.mul(code.index_at(arguments["columns"], grain.index), panel.width))
        weights = code.floats(arguments["values"], code.add(code.mul(grain.index, spec.rows), offset))
        sums = panel.load(target, masked=False)
        for r in range(spec.block):
            weight = code.splat(code.load(code.floats(weights, r), 1), panel.lanes)
            sums = [code.fma(weight, vector, total) for vector, total in zip(upstream[r], sums, strict=True)]
        panel.store(sums, target, masked=False)
