"""How kernels of `code` are started."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache, reduce
from operator import or_
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# A product and a sum may be rounded once: Triton's own choice up to 3.9, which warns where nothing is said.
ALWAYS = {"enable_fp_fusion": True}
ALIGNED = 16  # bytes: Triton compiles kernels apart for pointers to multiples of it


class Launch:
    """Starts of one kernel of `code` that differ in their first operands only: all else is `fixed`, and `options` as it takes them by name.

    At each start Triton looks for the compiled kernel that fits the operands, which takes longer than many a product. Those of one launch
    have the same dtypes each time. Where they are aligned too, as all is that torch allocates, Triton is asked once.
    """

    def __init__(self, name: str, *fixed: Any, **options: Any) -> None:
        self._kernel = getattr(_code(), name)
        self._fixed, self._options = fixed, options
        self._compiled: Any = None
        self._rest: tuple[Any, ...] = ()

    def __call__(self, grid: tuple[int, int, int], tensors: tuple[Tensor, ...], *numbers: int) -> None:
        """Run `grid` programs on torch's current device; numbers: operands behind the tensors, for which nothing is compiled apart."""
        places = [each.data_ptr() for each in tensors]
        aligned = not reduce(or_, places) % ALIGNED
        if aligned and self._compiled is not None:
            self._compiled[grid](*places, *numbers, *self._rest)
            return
        compiled = self._kernel[grid](*tensors, *numbers, *self._fixed, **self._options, **ALWAYS)
        if aligned and compiled is not None:  # the interpreter has none
            named = (self._options[each] for each in self._kernel.arg_names if each in self._options)
            self._rest = (*(each.data_ptr() if isinstance(each, Tensor) else each for each in self._fixed), *named)
            self._compiled = compiled


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


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on torch's current device, whatever its operands are on: within this on `device`."""
    # To change it and back takes longer than to ask.
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


@cache
def _code() -> ModuleType:
    from pollard.kernels.products.cuda import code  # which imports triton

    return code


__all__ = ["ALWAYS", "Launch", "above", "interpreted", "on", "version"]
