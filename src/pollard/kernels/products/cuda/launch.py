"""How kernels of `code` are started."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch

# A product and a sum may be rounded once: Triton's own choice up to 3.9, which warns where nothing is said.
ALWAYS = {"enable_fp_fusion": True}


def launch(name: str, grid: tuple[int, ...], device: torch.device, *operands: Any, **options: Any) -> None:
    """Run the kernel of that name, `grid` programs of it, on `device`."""
    with _on(device):
        getattr(_code(), name)[grid](*operands, **options, **ALWAYS)


def version() -> str:
    """Triton's."""
    import triton  # no dependency: torch's wheels for CUDA bring it

    return str(triton.__version__)


@cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU, one operation at a time."""
    import triton  # no dependency: torch's wheels for CUDA bring it

    return bool(triton.knobs.runtime.interpret)


def above(count: int) -> int:
    """The power of two at or above `count`, as sizes of Triton's blocks are.

    >>> [above(count) for count in (1, 2, 3, 100)]
    [1, 2, 4, 128]
    """
    return 1 << (count - 1).bit_length()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    # Triton launches on torch's current device, whatever its operands are on. To change it and back takes longer than to ask.
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


@cache
def _code() -> ModuleType:
    from pollard.kernels.products.cuda import code  # which imports triton

    return code


__all__ = ["ALWAYS", "above", "interpreted", "launch", "version"]
