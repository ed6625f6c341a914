"""The slow twin of a sparse linear layer: a dense weight under a mask."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.nn.linear import straight_through


class MaskedLinear(nn.Module):
    """`y = x (weight * mask)^T + bias`: what a sparse layer computes, at dense cost; the specification of its training.

    weight: `(out, in)` Parameter. mask: bool buffer `(out, in)`, True = keep. bias: `(out,)` Parameter or None.

    The gradient of a dropped weight is exactly zero. An optimizer may still move the number stored there (weight decay
    shrinks it): nothing reads it, and `to_dense` leaves it out. Raises InvalidInput where weight and topology differ in shape.

    >>> layer = MaskedLinear(torch.tensor([[1.0, 2.0]]), Topology.from_mask(torch.tensor([[True, False]])))
    >>> layer(torch.tensor([[3.0, 4.0]])).tolist(), layer.density
    ([[3.0]], 0.5)
    """

    weight: Tensor
    mask: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, topology: Topology, bias: Tensor | None = None) -> None:
        super().__init__()
        if tuple(weight.shape) != topology.shape:
            raise InvalidInput(
                f"a weight of shape {tuple(weight.shape)} with a topology of shape {topology.shape}",
                "equal shapes",
                "Take the topology that was made for this layer.",
            )
        self.pattern: Pattern = topology.pattern
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_buffer("mask", topology.mask().to(weight.device))
        # Bool (out, in): which kept weights the forward pass reads, where it does not read all.
        self.active: Tensor | None = None

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor | Topology, pattern: str | Pattern = "unstructured") -> Self:
        """The twin that keeps `mask` (a bool tensor `(out, in)`, or a topology, which brings its own pattern) of `linear`."""
        topology = mask if isinstance(mask, Topology) else Topology.from_mask(mask, pattern)
        return cls(linear.weight, topology, linear.bias)

    def to_dense(self) -> nn.Linear:
        """A linear layer with the mask applied to its weight."""
        out_features, in_features = self.weight.shape
        # On no device first: no random numbers are drawn, and nothing is written twice.
        linear = nn.Linear(in_features, out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self._kept().detach(), requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """`x (weight * mask)^T + bias`: `(..., in)` to `(..., out)`."""
        weight = self._kept()
        if self.active is not None:
            weight = straight_through(weight, self.active)
        return functional.linear(x, weight, self.bias)

    def _kept(self) -> Tensor:
        # where, not a product: a dropped weight that is not finite stays without effect.
        return torch.where(self.mask, self.weight, 0.0)

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    @property
    def topology(self) -> Topology:
        """The topology of the mask, made anew at each call."""
        return Topology.from_mask(self.mask.cpu(), self.pattern)

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return int(self.mask.sum()) / self.mask.numel()

    def extra_repr(self) -> str:
        """What `print(model)` shows between the brackets."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, density={self.density:.4g}, "
            f"pattern={self.pattern}, bias={self.bias is not None}"
        )
