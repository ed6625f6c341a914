"""A kernel call prepared once and made many times: everything that does not change is in place already."""

from __future__ import annotations

import struct
from typing import NoReturn

from torch import Tensor

from pollard.errors import KernelError
from pollard.kernels import jit
from pollard.kernels.emit import ARGUMENTS
from pollard.kernels.spec import KernelSpec


class Launch:
    """Runs `units` of the kernel of `spec` on `threads` of torch's threads.

    fixed: arguments that are the same at every call: tensors among them belong to the package, so nobody moves or changes
    their memory. Those that are missing, which must be the first of the kernel's own, are fixed later by `at`, or given to
    each call, in their order: addresses, whose memory the caller holds. Kernels check nothing: a caller passes a validated
    topology, and memory of the size that it says.
    """

    def __init__(self, spec: KernelSpec, units: int, threads: int, **fixed: Tensor | int) -> None:
        self.spec, self._units, self._threads, self._fixed = spec, units, threads, fixed
        # The kernel itself, not its entry alone: the code is freed with its engine.
        self._kernel = jit.load(spec)
        self._entry = self._kernel.entry
        names = ARGUMENTS[spec.operation]
        if not fixed.keys() <= set(names):
            raise KernelError(
                f"arguments {sorted(fixed.keys() - set(names))} of a kernel for {spec.operation!r}",
                ", ".join(names),
                "Report this as a defect.",
            )
        slots = [_slot(fixed[name]) if name in fixed else None for name in names]
        first = next((place for place, slot in enumerate(slots) if slot is not None), len(slots))
        self._pack, self._missing = struct.Struct(f"{first}q").pack, [n for n in names[first:] if n not in fixed]
        self._rest = struct.pack(f"{len(slots) - first}q", *[slot or 0 for slot in slots[first:]])
        if self._missing:
            self._pack = self._refuse

    def at(self, units: int, **fixed: int) -> Launch:
        """The same with more arguments fixed, and its own number of units."""
        return Launch(self.spec, units, self._threads, **self._fixed, **fixed)

    def __call__(self, *addresses: int) -> None:
        """Run the kernel."""
        self._entry(self._pack(*addresses) + self._rest, self._units, self._threads)

    def _refuse(self, *_: int) -> NoReturn:
        raise KernelError(
            f"a call of a kernel for {self.spec.operation!r} without {', '.join(self._missing)}",
            "all of its arguments",
            "Report this as a defect.",
        )


def equal_runs(count: int, parts: int) -> list[int]:
    """Where each of `parts` equal runs of `count` things begins, and where the last one ends.

    >>> equal_runs(10, 4)
    [0, 2, 5, 7, 10]
    """
    return [count * part // parts for part in range(parts + 1)]


def _slot(value: Tensor | int) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else value
