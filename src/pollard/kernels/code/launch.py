"""A kernel call prepared once and made many times: everything that does not change is in place already."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from pollard.errors import KernelError
from pollard.kernels.code import jit
from pollard.kernels.code.emit import ARGUMENTS
from pollard.kernels.code.spec import KernelSpec


class Launch:
    """Runs `units` of the kernel of `spec` on `threads` of torch's threads.

    fixed: arguments that are the same at every call: tensors among them belong to the package, so nobody moves or changes
    their memory. Those that are missing are fixed by `at`, but for the first of the kernel's own: they are given to each call.
    Kernels check nothing: a caller passes a validated topology, and memory of the size that it says.
    Raises KernelError for an argument that the kernel does not have.
    """

    def __init__(self, spec: KernelSpec, units: int, threads: int, **fixed: Tensor | int) -> None:
        self.spec, self._units, self._threads = spec, units, threads
        self._kernel = jit.load(spec)
        self._alive = [value for value in fixed.values() if isinstance(value, Tensor)]
        self._slots: dict[str, int | None] = dict.fromkeys(ARGUMENTS[spec.operation], None)
        self._slots = self._filled({name: _slot(value) for name, value in fixed.items()})

    def at(self, units: int, **fixed: int) -> Bound:
        """The launch of so many units with more arguments fixed; raises KernelError unless only the first are missing."""
        slots = self._filled(fixed)
        values = list(slots.values())
        missing = values.count(None)
        if None in values[missing:]:
            lacking = [name for name, value in slots.items() if value is None]
            raise KernelError(
                f"a kernel for {self.spec.operation!r} without {', '.join(lacking)}",
                "all arguments, but for the first ones, which each call gives",
                "Report this as a defect.",
            )
        rest = struct.pack(f"{len(values) - missing}q", *values[missing:])
        return Bound(self._kernel, missing, rest, units, self._threads, self._alive)

    def __call__(self) -> None:
        """Run the kernel, all of whose arguments are fixed."""
        self.at(self._units)()

    def _filled(self, fixed: Mapping[str, int]) -> dict[str, int | None]:
        slots: dict[str, int | None] = {**self._slots, **fixed}
        if len(slots) > len(self._slots):
            raise KernelError(
                f"arguments {sorted(slots.keys() - self._slots.keys())} of a kernel for {self.spec.operation!r}",
                ", ".join(self._slots),
                "Report this as a defect.",
            )
        return slots


class Bound:
    """A launch of which only the first arguments are missing, addresses whose memory the caller holds: given in order."""

    __slots__ = ("_alive", "_entry", "_kernel", "_pack", "_rest", "_threads", "_units")

    def __init__(  # noqa: PLR0917 - called by `at` alone
        self, kernel: jit.Kernel, missing: int, rest: bytes, units: int, threads: int, alive: list[Tensor]
    ) -> None:
        # The kernel itself, not its entry alone: the code is freed with its engine.
        self._kernel, self._alive = kernel, alive
        self._entry, self._pack, self._rest = kernel.entry, struct.Struct(f"{missing}q").pack, rest
        self._units, self._threads = units, threads

    def __call__(self, *addresses: int) -> None:
        """Run the kernel."""
        self._entry(self._pack(*addresses) + self._rest, self._units, self._threads)


def equal_runs(count: int, parts: int) -> Tensor:
    """Where each of `parts` equal runs of `count` things begins, and where the last one ends: int32 `(parts + 1,)`.

    >>> equal_runs(10, 4).tolist()
    [0, 2, 5, 7, 10]
    """
    return torch.tensor(_borders(count, parts), dtype=torch.int32, device="cpu")


def runs_of(count: int, most: int) -> list[tuple[int, int]]:
    """From where to where each run of `count` things goes, in as few of about equal length as are of at most `most`, or of one.

    >>> runs_of(10, 4)
    [(0, 3), (3, 6), (6, 10)]
    """
    return list(pairwise(_borders(count, -(-count // max(most, 1)))))


def _borders(count: int, parts: int) -> list[int]:
    return [count * part // parts for part in range(parts + 1)]


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies, as `Bound` takes it; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _slot(value: Tensor | int) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else value
