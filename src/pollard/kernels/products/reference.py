"""The slow twins: every operation in plain torch, obviously right. They are the specification, and the fallback."""

from __future__ import annotations

from torch import Tensor

from pollard.activations import activated_
from pollard.formats.topology import Topology
from pollard.kernels.products.placed import coordinates_on


def forward(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """``x @ W.T + bias`` for x `(batch, in)`, then the activation: `(batch, out)`, features-first in memory."""
    rows, columns = coordinates_on(topology, x.device)
    y = _zeros(x, topology.shape[0])
    y.t().index_add_(0, rows, x.t().index_select(0, columns) * values[:, None])
    if bias is not None:
        y += bias
    return activated_(y, activation)


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W`` for grad `(batch, out)`: `(batch, in)`, features-first in memory."""
    rows, columns = coordinates_on(topology, grad.device)
    dx = _zeros(grad, topology.shape[1])
    dx.t().index_add_(0, columns, grad.t().index_select(0, rows) * values[:, None])
    return dx


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``(grad.T @ x)`` at the kept weights: one number a value."""
    rows, columns = coordinates_on(topology, x.device)
    return (grad.t().index_select(0, rows) * x.t().index_select(0, columns)).sum(1)


def _zeros(like: Tensor, features: int) -> Tensor:
    # No view, so that it may be written to.
    return like.new_empty_strided((like.shape[0], features), (1, like.shape[0])).zero_()
