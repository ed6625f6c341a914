"""A dense operand as kernels see it: its layout, read off its strides, and its panels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pollard.kernels.code.emit.numbers import NUMBERS, Numbers
from pollard.kernels.code.emit.panels import Panels
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target
from pollard.kernels.products.workspace import workspace


def name_of(dtype: torch.dtype) -> str:
    """The name of `dtype`, as kernels have it.

    >>> name_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def words(count: int, numbers: Numbers) -> int:
    """How many float32 numbers take as much memory as `count` of these."""
    return -(-count * numbers.bytes // 4)


class Operand(NamedTuple):
    """The layout of a dense `(batch, features)` tensor.

    features_first: a feature's batch is contiguous, features are `stride` apart. Otherwise rows of the batch are.
    dtype: of its numbers. copied: the tensor lies in neither way; this is the layout of a contiguous copy.
    """

    batch: int
    features: int
    features_first: bool
    stride: int
    dtype: str
    copied: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        """Read the layout of `tensor` off its strides."""
        batch, features = tensor.shape
        by_batch, by_feature = tensor.stride()
        dtype = name_of(tensor.dtype)
        if (by_batch == 1 or batch == 1) and (by_feature >= batch or features == 1):
            return cls(batch, features, True, by_feature, dtype)
        if (by_feature == 1 or features == 1) and (by_batch >= features or batch == 1):
            return cls(batch, features, False, by_batch, dtype)
        return cls(batch, features, False, features, dtype, copied=True)

    @property
    def layout(self) -> str:
        """The layout's name in tuning keys and explanations."""
        return "column-major" if self.features_first else "row-major"


class Packing:
    """Lays operands of so many `features` and one layout out in panels: panel after panel, each `(features, width)`.

    kind: of the panels, which a batch is cut into. The panels lie in the thread's workspace for `purpose`, until the next
    packing for the same. chunks: runs of features, packed one after another, a share of them by each thread.
    """

    def __init__(
        self,
        target: Target,
        operand: Operand,
        kind: tuple[int, bool, bool],
        threads: int,
        *,
        purpose: str,
        chunks: int | None = None,
    ) -> None:
        self._numbers = NUMBERS[operand.dtype]
        self._features, self._unit, self._purpose = operand.features, self._numbers.unit(target.lanes), purpose
        vectors, wide, ragged = kind if operand.features_first else (1, False, False)
        spec = KernelSpec(
            "pack",
            target.isa,
            vectors=vectors,
            wide=wide,
            ragged=ragged,
            packed=not operand.features_first,
            numbers=operand.dtype,
        )
        self._chunks = max(1, min(threads, self._features) if chunks is None else chunks)
        self._launch = Launch(
            spec, self._chunks, threads, bounds=equal_runs(self._features, self._chunks),
            PASSES=1, FEATURES=self._features, CHUNKS=self._chunks,
        )  # fmt: skip

    def at(self, operand: Operand, panels: Panels) -> Callable[[Tensor], Tensor]:
        """What lays a tensor of that layout out in `panels`."""
        onto, purpose = self.onto(operand, panels), self._purpose
        size = words(panels.columns(self._unit) * self._features, self._numbers)

        def pack(tensor: Tensor) -> Tensor:
            out = workspace(purpose, size)
            onto(tensor.data_ptr(), out.data_ptr())
            return out

        return pack

    def onto(self, operand: Operand, panels: Panels) -> Callable[[int, int], None]:
        """What lays the tensor at an address out in `panels` at another one."""
        return self._launch.at(
            panels.count * self._chunks, BATCH=operand.batch, LDX=operand.stride, PANELS=panels.count, WIDE=panels.wide,
            LAST=panels.last, VECTORS=panels.vectors,
        )  # fmt: skip


__all__ = ["Operand", "Packing", "name_of"]
