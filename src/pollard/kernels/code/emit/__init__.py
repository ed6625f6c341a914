"""Kernels as Python functions from a spec to LLVM IR: pure, deterministic, one file an operation."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from pollard.kernels.code.emit import amx_gather as _amx_gather
from pollard.kernels.code.emit import amx_scatter as _amx_scatter
from pollard.kernels.code.emit import amx_sddmm as _amx_sddmm
from pollard.kernels.code.emit import bitmap as _bitmap
from pollard.kernels.code.emit import choose as _choose
from pollard.kernels.code.emit import convolve as _convolve
from pollard.kernels.code.emit import correlate as _correlate
from pollard.kernels.code.emit import draw as _draw
from pollard.kernels.code.emit import gather as _gather
from pollard.kernels.code.emit import matvec as _matvec
from pollard.kernels.code.emit import merge as _merge
from pollard.kernels.code.emit import move as _move
from pollard.kernels.code.emit import n_of_m as _n_of_m
from pollard.kernels.code.emit import order as _order
from pollard.kernels.code.emit import outlast as _outlast
from pollard.kernels.code.emit import pack as _pack
from pollard.kernels.code.emit import round as _round
from pollard.kernels.code.emit import scan as _scan
from pollard.kernels.code.emit import scatter as _scatter
from pollard.kernels.code.emit import sddmm as _sddmm
from pollard.kernels.code.emit import settle as _settle
from pollard.kernels.code.emit import skinny as _skinny
from pollard.kernels.code.emit import stream as _stream
from pollard.kernels.code.emit import transposed as _transposed
from pollard.kernels.code.emit import turn as _turn
from pollard.kernels.code.spec import KernelSpec

EMITTERS: dict[str, Callable[[KernelSpec], ir.Module]] = {
    "above": _scan.above,
    "absent": _merge.absent,
    "amx_gather": _amx_gather.gather,
    "amx_scatter": _amx_scatter.scatter,
    "amx_sddmm": _amx_sddmm.sddmm,
    "between": _outlast.between,
    "bitmap": _bitmap.bitmap,
    "choose": _choose.choose,
    "convolve": _convolve.convolve,
    "correlate": _correlate.correlate,
    "count": _turn.count,
    "cut": _turn.cut,
    "draw": _draw.draw,
    "gather": _gather.gather,
    "list": _settle.listed,
    "mark": _merge.mark,
    "matvec": _matvec.matvec,
    "move": _move.move,
    "n_of_m": _n_of_m.n_of_m,
    "normal": _stream.block,
    "normal_at": _stream.positions,
    "order": _order.order,
    "outlast": _outlast.outlast,
    "pack": _pack.pack,
    "place": _merge.place,
    "rewire": _merge.rewire,
    "round": _round.stochastic,
    "sddmm": _sddmm.sddmm,
    "scatter": _scatter.scatter,
    "skinny": _skinny.skinny,
    "tally": _merge.tally,
    "tick": _settle.tick,
    "transposed": _transposed.transposed,
    "turn": _turn.turn,
    "uniform": _stream.block,
    "uniform_at": _stream.positions,
    "within": _scan.within,
}
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "above": _scan.ABOVE,
    "absent": _merge.ABSENT,
    "amx_gather": _amx_gather.ARGUMENTS,
    "amx_scatter": _amx_scatter.ARGUMENTS,
    "amx_sddmm": _amx_sddmm.ARGUMENTS,
    "between": _outlast.OUTLAST,
    "bitmap": _bitmap.ARGUMENTS,
    "choose": _choose.CHOOSE,
    "convolve": _convolve.ARGUMENTS,
    "correlate": _correlate.ARGUMENTS,
    "count": _turn.COUNT,
    "cut": _turn.CUT,
    "draw": _draw.DRAW,
    "gather": _gather.ARGUMENTS,
    "list": _settle.LIST,
    "mark": _merge.MARK,
    "matvec": _matvec.ARGUMENTS,
    "move": _move.ARGUMENTS,
    "n_of_m": _n_of_m.ARGUMENTS,
    "normal": _stream.BLOCK,
    "normal_at": _stream.POSITIONS,
    "order": _order.ORDER,
    "outlast": _outlast.OUTLAST,
    "pack": _pack.ARGUMENTS,
    "place": _merge.PLACE,
    "rewire": _merge.REWIRE,
    "round": _round.ROUND,
    "sddmm": _sddmm.ARGUMENTS,
    "scatter": _scatter.ARGUMENTS,
    "skinny": _skinny.ARGUMENTS,
    "tally": _merge.TALLY,
    "tick": _settle.TICK,
    "transposed": _transposed.ARGUMENTS,
    "turn": _turn.TURN,
    "uniform": _stream.BLOCK,
    "uniform_at": _stream.POSITIONS,
    "within": _scan.WITHIN,
}


def emit(spec: KernelSpec) -> ir.Module:
    """The LLVM module of `spec`: the same text for the same spec, always."""
    return EMITTERS[spec.operation](spec)


__all__ = ["ARGUMENTS", "EMITTERS", "emit"]
