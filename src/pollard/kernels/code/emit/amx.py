"""Tiles of AMX: registers of up to sixteen rows of 64 bytes, and the instruction that multiplies two of them and adds to a third."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from pollard.kernels.code.simd import BYTE, I64, VOID, Code, Value

ROWS, LINE = 16, 64  # of a tile, and bytes of a row
TILE = ROWS * LINE
DEEP = LINE // 2  # bfloat16 numbers of a row: products that one instruction adds to each sum
PALETTE = 1  # eight tiles
WHOLE = (ROWS, LINE)

Shapes = Sequence[tuple[int, int]]


def configure(code: Code, shapes: Shapes) -> None:
    """Give this thread's tiles their shapes: rows, and bytes of a row, of each."""
    layout = bytearray(LINE)
    layout[0] = PALETTE
    for tile, (rows, width) in enumerate(shapes):
        layout[16 + 2 * tile], layout[48 + tile] = width, rows
    place = ir.GlobalVariable(code.module, ir.ArrayType(BYTE, LINE), "shapes")
    place.initializer, place.global_constant, place.linkage, place.align = ir.Constant(place.value_type, layout), True, "internal", LINE  # fmt: skip
    code.call("llvm.x86.ldtilecfg", VOID, [code.ir.bitcast(place, BYTE.as_pointer())])


def release(code: Code) -> None:
    """Leave this thread's tiles as they were: without shape, so that nothing has to be saved when another thread runs."""
    code.call("llvm.x86.tilerelease", VOID, [])


def clear(code: Code, tile: int) -> None:
    """Zeros."""
    code.call("llvm.x86.tilezero", VOID, [BYTE(tile)])


def load(code: Code, tile: int, pointer: Value, stride: int = LINE) -> None:
    """Read a tile whose rows are `stride` bytes apart."""
    code.call("llvm.x86.tileloadd64", VOID, [BYTE(tile), pointer, I64(stride)])


def store(code: Code, tile: int, pointer: Value) -> None:
    """Write the rows of a tile one after another."""
    code.call("llvm.x86.tilestored64", VOID, [BYTE(tile), pointer, I64(LINE)])


def multiply(code: Code, sums: int, left: int, right: int) -> None:
    """``sums[m, n] += sum over k of left[m, k] * right[k, n]``, of which rows of `right` hold pairs: k and k + 1 of each n.

    Products of even k are added to each other in order, from zero on, and those of odd k; then both sums, then that to `sums`. Each
    addition is rounded to nearest, subnormal numbers are zero: so Intel's manual puts it (TDPBF16PS).
    """
    code.call("llvm.x86.tdpbf16ps", VOID, [BYTE(sums), BYTE(left), BYTE(right)])


__all__ = [
    "DEEP",
    "LINE",
    "ROWS",
    "TILE",
    "WHOLE",
    "Shapes",
    "clear",
    "configure",
    "load",
    "multiply",
    "release",
    "store",
]
