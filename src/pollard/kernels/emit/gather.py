"""``Y = W X``: each row of W gathers the rows of X that it keeps, a panel of the batch at a time."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.panels import Panel, each_kind
from pollard.kernels.emit.tiles import Tile, each_tile
from pollard.kernels.simd import Code, Loop, Value
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import TARGETS

# Upper case: integers. Sizes are in elements; `bounds` holds the first row group of each chunk, and one more.
ARGUMENTS = (
    "tiles", "columns", "values", "x", "y", "bias", "bounds",
    "TILES", "STRIDE", "END", "IN", "LDX", "LDY", "PANELS", "WIDE", "LAST", "CHUNKS",
)  # fmt: skip
UNROLL = 2


def gather(spec: KernelSpec) -> ir.Module:
    """The module of a gather kernel; a unit of work is a panel of the batch by a chunk of row groups."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, index: Value) -> None:
        panel = code.ir.sdiv(index, arguments["CHUNKS"])
        chunk = code.ir.srem(index, arguments["CHUNKS"])
        counts = (arguments["PANELS"], arguments["WIDE"], arguments["LAST"])
        each_kind(code, spec, lanes, panel, counts, lambda kind: _panel(code, spec, arguments, kind, chunk))

    return kernel_module(spec.isa != "neon", ARGUMENTS, unit)


def _panel(code: Code, spec: KernelSpec, arguments: Arguments, panel: Panel, chunk: Value) -> None:
    first = code.index_at(arguments["bounds"], chunk)
    last = code.index_at(arguments["bounds"], code.add(chunk, 1))
    if spec.packed:
        x, ldx = code.floats(arguments["x"], code.mul(panel.start, arguments["IN"])), code.integer(panel.width)
    else:
        x, ldx = code.floats(arguments["x"], panel.start), arguments["LDX"]
    y = code.floats(arguments["y"], panel.start)

    def row_group(tile: Tile, group: Value, start: Value, end: Value) -> None:
        for offset in range(0, spec.rows, spec.block):
            rows = [code.add(code.mul(group, spec.rows), offset + r) for r in range(spec.block)]
            targets = [code.floats(y, code.mul(row, arguments["LDY"])) for row in rows]
            sums = _initial(code, spec, arguments, panel, tile, rows, targets)
            sums = _accumulate(code, spec, arguments, panel, (x, ldx), (start, end), offset, sums)
            _write(code, spec, panel, tile, targets, sums)

    each_tile(code, spec, arguments, (first, last), row_group)


def _initial(
    code: Code, spec: KernelSpec, arguments: Arguments, panel: Panel, tile: Tile, rows: list[Value], targets: list[Value]
) -> list[Value]:
    def fresh() -> list[Value]:
        if not spec.bias:
            return [code.zero(panel.lanes)] * (spec.block * panel.vectors)
        starts = [code.splat(code.load(code.floats(arguments["bias"], row), 1), panel.lanes) for row in rows]
        return [start for start in starts for _ in range(panel.vectors)]

    if not spec.tiled:
        return fresh()
    values = fresh()
    before = code.ir.block
    with code.ir.if_then(code.ir.not_(tile.is_first)):
        loaded = [vector for target in targets for vector in panel.load(target, masked=True)]
        inside = code.ir.block
    return [code.either(pair, (before, inside)) for pair in zip(values, loaded, strict=True)]


def _accumulate(
    code: Code,
    spec: KernelSpec,
    arguments: Arguments,
    panel: Panel,
    operand: tuple[Value, Value],
    grains: tuple[Value, Value],
    offset: int,
    sums: list[Value],
) -> list[Value]:
    x, ldx = operand

    def grain(position: Value, sums: list[Value]) -> list[Value]:
        source = code.floats(x, code.mul(code.index_at(arguments["columns"], position), ldx))
        vectors = panel.load(source, masked=not spec.packed)
        weights = code.floats(arguments["values"], code.add(code.mul(position, spec.rows), offset))
        following = []
        for r in range(spec.block):
            weight = code.splat(code.load(code.floats(weights, r), 1), panel.lanes)
            own = sums[r * panel.vectors : (r + 1) * panel.vectors]
            following += [code.fma(weight, vector, total) for vector, total in zip(vectors, own, strict=True)]
        return following

    unroll = UNROLL if spec.block == 1 else 1
    start, end = grains
    if unroll > 1:
        with code.loop(start, code.sub(end, unroll - 1), unroll, sums) as several:
            running = several.carried
            for step in range(unroll):
                running = grain(code.add(several.index, step), running)
            several.carry(running)
        start, sums = several.index, several.carried
    with code.loop(start, end, carried=sums) as single:
        single.carry(grain(single.index, single.carried))
    rest: Loop = single
    return rest.carried


def _write(code: Code, spec: KernelSpec, panel: Panel, tile: Tile, targets: list[Value], sums: list[Value]) -> None:
    if spec.relu:
        sums = [code.ir.select(tile.is_last, code.relu(total, panel.lanes), total) for total in sums]
    for r, target in enumerate(targets):
        panel.store(sums[r * panel.vectors : (r + 1) * panel.vectors], target, masked=True)
