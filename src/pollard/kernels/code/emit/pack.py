"""A dense operand laid out in panels: for each panel of the batch, its columns of every feature, side by side."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS
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
        extent = panel_extent(code, spec, panel, arguments["WIDE"], arguments["VECTORS"])
        _transpose(code, spec, arguments, extent, run_of_groups(code, arguments, chunk, turn))

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


def _copy(code: Code, arguments: Arguments, panel: Panel, work: tuple[Value, Value]) -> None:
    numbers = panel.numbers
    source = numbers.at(code, arguments["x"], panel.start)
    target = numbers.at(code, arguments["y"], code.mul(panel.start, arguments["FEATURES"]))
    with code.loop(*run_of_groups(code, arguments, *work)) as feature:
        row = numbers.at(code, source, code.mul(feature.index, arguments["LDX"]))
        panel.copy(row, numbers.at(code, target, code.mul(feature.index, panel.width)))


def _transpose(
    code: Code, spec: KernelSpec, arguments: Arguments, extent: tuple[Value, Value], features: tuple[Value, Value]
) -> None:
    (start, width), (first, last) = extent, features
    numbers, lanes = NUMBERS[spec.numbers], TARGETS[spec.isa].lanes
    unit = numbers.unit(lanes)
    target = numbers.at(code, arguments["y"], code.mul(start, arguments["FEATURES"]))
    final = code.sub(arguments["BATCH"], 1)
    with code.loop(0, width, unit) as part:
        # Beyond the batch the last row is read again: no branch, no access out of bounds.
        columns = [code.minimum(code.add(start, code.add(part.index, c)), final) for c in range(unit)]
        sources = [numbers.at(code, arguments["x"], code.mul(column, arguments["LDX"])) for column in columns]

        def place(feature: Value) -> Value:
            return numbers.at(code, target, code.add(code.mul(feature, width), part.index))

        with code.loop(first, code.sub(last, lanes - 1), lanes) as block:
            square = numbers.side_by_side(code, [numbers.at(code, source, block.index) for source in sources], lanes)
            for lane, words in enumerate(code.transpose(square, lanes)):
                numbers.put_words(code, words, place(code.add(block.index, lane)))
        with code.loop(block.index, last) as single:
            for c, source in enumerate(sources):
                there = numbers.at(code, place(single.index), c)
                numbers.copy_one(code, numbers.at(code, source, single.index), there)
