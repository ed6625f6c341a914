"""A dense operand laid out in panels: for each panel of the batch, its columns of every feature, side by side."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.panels import Panel, panel_extent, panel_module
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# x is the source, features-first or batch-first with a stride of LDX; y takes the panels. `bounds` cuts the features.
ARGUMENTS = ("x", "y", "bounds", "PASSES", "FEATURES", "BATCH", "LDX", "PANELS", "WIDE", "LAST", "CHUNKS", "VECTORS")


def pack(spec: KernelSpec) -> ir.Module:
    """The module of a packing kernel; a unit of work is a panel of the batch by a chunk of features.

    Unfilled lanes of the last panel are zero or repeat the last column of the batch: nobody reads them into a result.
    """
    if not spec.packed:
        return panel_module(spec, ARGUMENTS, _copy)

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        # A transposed panel is written a vector at a time whatever its kind and width: one kernel serves all batches.
        index, turn = work
        panel = code.ir.sdiv(index, arguments["CHUNKS"])
        chunk = code.ir.srem(index, arguments["CHUNKS"])
        lanes = TARGETS[spec.isa].lanes
        extent = panel_extent(code, panel, arguments["WIDE"], arguments["VECTORS"], lanes)
        _transpose(code, arguments, extent, run_of_groups(code, arguments, chunk, turn), lanes)

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


def _copy(code: Code, arguments: Arguments, panel: Panel, work: tuple[Value, Value]) -> None:
    source = code.floats(arguments["x"], panel.start)
    target = code.floats(arguments["y"], code.mul(panel.start, arguments["FEATURES"]))
    with code.loop(*run_of_groups(code, arguments, *work)) as feature:
        vectors = panel.load(code.floats(source, code.mul(feature.index, arguments["LDX"])), masked=True)
        panel.store(vectors, code.floats(target, code.mul(feature.index, panel.width)), masked=False)


def _transpose(
    code: Code, arguments: Arguments, extent: tuple[Value, Value], features: tuple[Value, Value], lanes: int
) -> None:
    (start, width), (first, last) = extent, features
    target = code.floats(arguments["y"], code.mul(start, arguments["FEATURES"]))
    final = code.sub(arguments["BATCH"], 1)
    with code.loop(0, width, lanes) as part:
        # Beyond the batch the last row is read again: no branch, no access out of bounds.
        columns = [code.minimum(code.add(start, code.add(part.index, lane)), final) for lane in range(lanes)]
        sources = [code.floats(arguments["x"], code.mul(column, arguments["LDX"])) for column in columns]

        def place(feature: Value) -> Value:
            return code.floats(target, code.add(code.mul(feature, width), part.index))

        with code.loop(first, code.sub(last, lanes - 1), lanes) as block:
            square = [code.load(code.floats(source, block.index), lanes) for source in sources]
            for lane, vector in enumerate(code.transpose(square, lanes)):
                code.store(vector, place(code.add(block.index, lane)))
        with code.loop(block.index, last) as single:
            for lane, source in enumerate(sources):
                value = code.load(code.floats(source, single.index), 1)
                code.store(value, code.floats(place(single.index), lane))
