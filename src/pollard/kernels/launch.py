"""A kernel call prepared once and made many times: everything that does not change is in place already."""

from __future__ import annotations

import ctypes

from torch import Tensor

from pollard.kernels import jit
from pollard.kernels.emit import ARGUMENTS
from pollard.kernels.spec import KernelSpec


class Launch:
    """Runs `units` of the kernel of `spec` on `threads` of torch's threads.

    fixed: arguments that are the same at every call: tensors among them belong to the package, so nobody moves or changes
    their memory. The others are given to each call, in the order of the kernel's own arguments; a call may say its own
    number of `units`. Kernels check nothing: a caller passes a validated topology, and tensors of the sizes that it says.
    """

    def __init__(self, spec: KernelSpec, units: int, threads: int, **fixed: Tensor | int) -> None:
        names = ARGUMENTS[spec.operation]
        self.spec, self._units, self._threads = spec, units, threads
        # The kernel itself, not its entry alone: the code is freed with its engine.
        self._kernel = jit.load(spec)
        self._array = ctypes.c_int64 * len(names)
        self._fixed = bytes(self._array(*[_slot(fixed.get(name, 0)) for name in names]))
        self._open = [position for position, name in enumerate(names) if name not in fixed]
        self._alive = [value for value in fixed.values() if isinstance(value, Tensor)]

    def __call__(self, *arguments: Tensor | int, units: int | None = None) -> None:
        """Run the kernel; tensors stand for their memory."""
        slots = self._array.from_buffer_copy(self._fixed)
        for position, value in zip(self._open, arguments, strict=True):
            slots[position] = value if type(value) is int else value.data_ptr()  # type: ignore[union-attr]  # see _slot
        self._kernel.entry(ctypes.addressof(slots), self._units if units is None else units, self._threads)


def equal_runs(count: int, parts: int) -> list[int]:
    """Where each of `parts` equal runs of `count` things begins, and where the last one ends.

    >>> equal_runs(10, 4)
    [0, 2, 5, 7, 10]
    """
    return [count * part // parts for part in range(parts + 1)]


def _slot(value: Tensor | int) -> int:
    return value if type(value) is int else value.data_ptr()  # type: ignore[union-attr]  # it is one or the other
