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


class Packing:
    """Lays operands of one shape and layout out in panels: panel after panel, each `(features, width)`.

    The panels lie in the thread's workspace for `purpose`, until the next packing for the same.
    """

    def __init__(self, target: Target, operand: Operand, panels: Panels, threads: int, *, purpose: str) -> None:
        batch, features = operand.tensor.shape
        self.columns = panels.columns(target.lanes)
        self._size, self._purpose = self.columns * features, purpose
        spec = KernelSpec(
            "pack",
            target.isa,
            vectors=panels.vectors,
            wide=panels.wide > 0 and operand.features_first,
            ragged=panels.last > 0 and operand.features_first,
            packed=not operand.features_first,
        )
        chunks = max(1, min(threads, features))
        self._launch = Launch(
            spec, panels.count * chunks, threads,
            bounds=torch.tensor(equal_runs(features, chunks), dtype=torch.int32),
            PASSES=1, FEATURES=features, BATCH=batch, PANELS=panels.count, WIDE=panels.wide, LAST=panels.last, CHUNKS=chunks,
        )  # fmt: skip

    def __call__(self, operand: Operand) -> Tensor:
        """The panels of `operand`."""
        out = workspace(self._purpose, self._size)
        self._launch(operand.tensor, out, operand.stride)
        return out
