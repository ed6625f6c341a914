"""A dense operand as kernels see it: its layout, read off its strides, and its panels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pollard.kernels.emit.panels import Panels
from pollard.kernels.launch import launch
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import Target


@dataclass(frozen=True, slots=True)
class Operand:
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

    def packed(self, target: Target, panels: Panels, threads: int) -> Tensor:
        """The operand in `panels`: panel after panel, each `(features, width)`."""
        batch, features = self.tensor.shape
        out = torch.empty(panels.columns(target.lanes) * features)
        spec = KernelSpec(
            "pack",
            target.isa,
            vectors=panels.vectors,
            wide=panels.wide > 0 and self.features_first,
            ragged=panels.last > 0 and self.features_first,
            packed=not self.features_first,
        )
        chunks = max(1, min(threads, features))
        bounds = torch.arange(chunks + 1).mul_(features).div_(chunks, rounding_mode="floor").int()
        launch(
            spec, panels.count * chunks, threads,
            x=self.tensor, y=out, bounds=bounds, FEATURES=features, BATCH=batch, LDX=self.stride,
            PANELS=panels.count, WIDE=panels.wide, LAST=panels.last, CHUNKS=chunks,
        )  # fmt: skip
        return out

    def rows_of_features(self, target: Target, threads: int) -> tuple[Tensor, int]:
        """The operand features-first: the tensor that holds it, and the distance between features."""
        if self.features_first:
            return self.tensor, self.stride
        panels = Panels.cut(self.tensor.shape[0], target.lanes, self.tensor.shape[0])
        return self.packed(target, panels, threads), panels.columns(target.lanes)
