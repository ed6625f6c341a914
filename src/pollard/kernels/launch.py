"""Calling a compiled kernel: named arguments to one array of 64-bit slots."""

from __future__ import annotations

import ctypes
from functools import cache

from torch import Tensor

from pollard.kernels import jit
from pollard.kernels.emit import ARGUMENTS
from pollard.kernels.spec import KernelSpec


@cache
def _slots(operation: str) -> tuple[tuple[str, ...], type[ctypes.Array[ctypes.c_int64]]]:
    names = ARGUMENTS[operation]
    return names, ctypes.c_int64 * len(names)


def launch(spec: KernelSpec, units: int, threads: int, **arguments: Tensor | int) -> None:
    """Run all `units` of the kernel of `spec` on `threads` of torch's threads.

    Kernels check nothing: a caller passes a validated topology, and tensors of the sizes that it says.
    """
    kernel = jit.load(spec)
    names, array = _slots(spec.operation)
    values = [arguments[name] for name in names]
    slots = array(*[value.data_ptr() if isinstance(value, Tensor) else value for value in values])
    kernel.entry(ctypes.addressof(slots), units, threads)
