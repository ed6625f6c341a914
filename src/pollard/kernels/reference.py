"""The slow twins: every operation in plain torch, obviously right. They are the specification, and the fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.formats.topology import Topology


def forward(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ W.T + bias`` for x `(batch, in)`, then ReLU if asked: `(batch, out)`, features-first in memory."""
    rows, columns = _coordinates(topology)
    y = _zeros(x, topology.shape[0])
    y.t().index_add_(0, rows, x.t().index_select(0, columns) * values[:, None])
    if bias is not None:
        y += bias
    return y.relu_() if relu else y


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W`` for grad `(batch, out)`: `(batch, in)`, features-first in memory."""
    rows, columns = _coordinates(topology)
    dx = _zeros(grad, topology.shape[1])
    dx.t().index_add_(0, columns, grad.t().index_select(0, rows) * values[:, None])
    return dx


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``(grad.T @ x)`` at the kept weights: one number a value."""
    rows, columns = _coordinates(topology)
    return (grad.t().index_select(0, rows) * x.t().index_select(0, columns)).sum(1)


def _zeros(like: Tensor, features: int) -> Tensor:
    # No view, so that it may be written to.
    return like.new_empty_strided((like.shape[0], features), (1, like.shape[0])).zero_()


def _coordinates(topology: Topology) -> tuple[Tensor, Tensor]:
    positions = topology.weight_positions()
    width = max(topology.shape[1], 1)
    return torch.div(positions, width, rounding_mode="floor"), positions % width
