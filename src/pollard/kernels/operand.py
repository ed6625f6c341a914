"""A dense operand as kernels see it: its layout, read off its strides, and its panels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pollard.kernels.emit.panels import Panels
from pollard.kernels.launch import Launch, equal_runs
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import Target
from pollard.kernels.workspace import workspace


class Operand(NamedTuple):
    """A dense `(batch, features)` tensor and its layout.

    features_first: a feature's batch is contiguous, features are `stride` apart. Otherwise rows of the batch are.
    """

    tensor: Tensor
    features_first: bool
    stride: int

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        """Read the layout of `tensor` off its strides; anything that is neither row- nor column-major is copied."""
        batch, features = tensor.shape
        by_batch, by_feature = tensor.stride()
        if (by_batch == 1 or batch == 1) and (by_feature >= batch or features == 1):
            return cls(tensor, True, by_feature)
        if (by_feature == 1 or features == 1) and (by_batch >= features or batch == 1):
            return cls(tensor, False, by_batch)
        tensor = tensor.contiguous()
        return cls(tensor, False, tensor.stride(0))

    @property
    def layout(self) -> str:
        """The layout's name in tuning keys and explanations."""
        return "column-major" if self.features_first else "row-major"


def output(batch: int, features: int) -> Tensor:
    """Room for a `(batch, features)` result, features-first: a tensor of its own, no view, so that it may be written to."""
    return torch.empty_strided((batch, features), (1, batch), dtype=torch.float32, device="cpu")


class Packing:
    """Lays operands of so many `features` and one layout out in panels: panel after panel, each `(features, width)`.

    kind: of the panels, which a batch is cut into. The panels lie in the thread's workspace for `purpose`, until the next
    packing for the same.
    """

    def __init__(
        self, target: Target, operand: Operand, kind: tuple[int, bool, bool], threads: int, *, purpose: str
    ) -> None:
        self._features, self._lanes, self._purpose = operand.tensor.shape[1], target.lanes, purpose
        vectors, wide, ragged = kind if operand.features_first else (1, False, False)
        spec = KernelSpec(
            "pack", target.isa, vectors=vectors, wide=wide, ragged=ragged, packed=not operand.features_first
        )
        self._chunks = max(1, min(threads, self._features))
        bounds = equal_runs(self._features, self._chunks)
        self._launch = Launch(
            spec, self._chunks, threads, bounds=torch.tensor(bounds, dtype=torch.int32, device="cpu"),
            PASSES=1, FEATURES=self._features, CHUNKS=self._chunks,
        )  # fmt: skip

    def __call__(self, operand: Operand, panels: Panels) -> Tensor:
        """`operand` in `panels`."""
        out = workspace(self._purpose, panels.columns(self._lanes) * self._features)
        self._launch(
            operand.tensor, out, operand.tensor.shape[0], operand.stride, panels.count, panels.wide, panels.last,
            panels.vectors, units=panels.count * self._chunks,
        )  # fmt: skip
        return out
