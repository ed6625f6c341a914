"""Kernels as Python functions from a spec to LLVM IR: pure, deterministic, one file an operation."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from pollard.kernels.emit import gather as _gather
from pollard.kernels.emit import pack as _pack
from pollard.kernels.emit import sample as _sample
from pollard.kernels.emit import scatter as _scatter
from pollard.kernels.spec import KernelSpec

EMITTERS: dict[str, Callable[[KernelSpec], ir.Module]] = {
    "gather": _gather.gather,
    "pack": _pack.pack,
    "sample": _sample.sample,
    "scatter": _scatter.scatter,
}
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "gather": _gather.ARGUMENTS,
    "pack": _pack.ARGUMENTS,
    "sample": _sample.ARGUMENTS,
    "scatter": _scatter.ARGUMENTS,
}


def emit(spec: KernelSpec) -> ir.Module:
    """The LLVM module of `spec`: the same text for the same spec, always."""
    return EMITTERS[spec.operation](spec)


__all__ = ["ARGUMENTS", "EMITTERS", "emit"]
