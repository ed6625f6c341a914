"""Torch's own OpenMP pool, for generated code: one pool, ruled by `torch.set_num_threads`."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@cache
def library() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch has loaded, or None where it is not GNU's or cannot be found."""
    folder = Path(torch.__file__).parent
    for path in [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]:
        try:
            found = ctypes.CDLL(str(path))
        except OSError:
            continue
        if all(hasattr(found, name) for name in SYMBOLS):
            return found
    return None


@cache
def publish(binding: Any) -> None:
    """Make the runtime's entry points known to LLVM's linker."""
    runtime = library()
    if runtime is not None:
        for name in SYMBOLS:
            binding.add_symbol(name, ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value)
