"""The three products by torch's own sparse ones, on any device that has them: float64 on the CPU, all on others.

No dense weight and no number for each weight and sample ever exists. `reference` stays the specification. On the CPU one
sample has a way of its own, in `lone`, since torch's wakes all threads for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pollard.activations import activated_
from pollard.formats.topology import Topology
from pollard.kernels.code.once import one_at_a_time
from pollard.kernels.products import lone, reference
from pollard.kernels.products.placed import indices_on, transpose_on

DEVICES, DTYPES = ("cpu", "cuda"), (torch.float32, torch.float64)
# Torch's products at the places of a pattern cost some 35 ns each for short sums, whole blocks of the dense product less for
# what is not very sparse. Only few blocks: each wakes all threads, for milliseconds where others use the machine too.
DENSE, SHORT, BLOCKS = 0.05, 64, 2
FEW = 2  # samples whose gradients are added one by one
BLOCK = 1 << 20  # numbers in a block: 8 MB


def forward(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """``x @ W.T + bias`` for x `(batch, in)`, then the activation: `(batch, out)`, features-first in memory."""
    if 0 in (*x.shape, topology.grains):
        return reference.forward(x, values, topology, bias, activation=activation)
    y = lone.forward(x, values, topology) if len(x) == 1 and _alone(x) else _forward(x, values, topology)
    if bias is not None:
        y += bias
    return activated_(y, activation)


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W`` for grad `(batch, out)`: `(batch, in)`, features-first in memory."""
    if 0 in (*grad.shape, topology.grains):
        return reference.input_grad(grad, values, topology)
    if len(grad) == 1 and _alone(grad):
        return lone.input_grad(grad, values, topology)
    turned, rows = transpose_on(topology, grad.device), topology.pattern.rows
    shape = topology.shape[1], topology.groups
    dx = _room(grad, topology.shape[1]).zero_()
    for row in range(rows):
        moved = values[row::rows].index_select(0, turned.permutation)
        matrix = _matrix(turned.row_pointers, turned.groups, moved, shape)
        dx.t().addmm_(matrix, grad[:, row::rows].t())
    return dx


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``(grad.T @ x)`` at the kept weights: one number a value."""
    if 0 in (*grad.shape, *x.shape, topology.grains):
        return reference.value_grad(grad, x, topology)
    if len(x) <= FEW and _alone(x):
        return lone.value_grad(grad, x, topology)
    out, width = topology.shape
    if x.is_cpu and topology.density >= DENSE and len(x) <= SHORT and out * width <= BLOCKS * BLOCK:
        return _by_blocks(grad, x, topology)
    rows = topology.pattern.rows
    dw = grad.new_zeros(topology.nnz)
    for row, pattern in _by_rows(dw, topology):
        sampled = torch.sparse.sampled_addmm(pattern, grad[:, row::rows].t(), x, beta=0.0)
        dw[row::rows] = sampled.values()
    return dw


def _forward(x: Tensor, values: Tensor, topology: Topology) -> Tensor:
    y, rows = _room(x, topology.shape[0]), topology.pattern.rows
    for row, matrix in _by_rows(values, topology):
        torch.mm(matrix, x.t(), out=y.t()) if rows == 1 and x.is_cpu else y.t()[row::rows].copy_(matrix @ x.t())
    return y


def _by_blocks(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """`value_grad` out of the dense product, some rows of it at a time."""
    rows, width = topology.pattern.rows, topology.shape[1]
    pointers, columns = topology.indices.row_pointers.numpy(), topology.indices.columns.numpy()
    step = max(1, BLOCK // (rows * width))
    dw = np.empty((topology.grains, rows), np.float64 if grad.dtype is torch.float64 else np.float32)
    for first in range(0, topology.groups, step):
        own = pointers[first : first + step + 1]
        grains = slice(own[0], own[-1])
        block = (grad.detach()[:, first * rows : (first + step) * rows].t() @ x.detach()).numpy().reshape(-1)
        places = np.repeat(np.arange(len(own) - 1) * (rows * width), np.diff(own)) + columns[grains]
        for row in range(rows):
            dw[grains, row] = block[row * width :].take(places)
    return torch.from_numpy(dw.reshape(-1))


def _alone(x: Tensor) -> bool:
    """Whether so few samples are for `lone`."""
    return x.is_cpu and x.dtype is torch.float64


def _room(like: Tensor, features: int) -> Tensor:
    # Features-first, and no view, so that it may be written to.
    return like.new_empty_strided((like.shape[0], features), (1, like.shape[0]))


def _by_rows(values: Tensor, topology: Topology) -> Iterator[tuple[int, Tensor]]:
    """Of every grain the first row, the second and so on: matrices that share the index arrays of the topology."""
    rows, shape = topology.pattern.rows, (topology.groups, topology.shape[1])
    row_pointers, columns = indices_on(topology, values.device)
    for row in range(rows):
        yield row, _matrix(row_pointers, columns, values[row::rows].contiguous(), shape)


_announced: list[bool] = []


def _matrix(pointers: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    if not _announced:
        _announce()
    return torch.sparse_csr_tensor(
        pointers, columns, values, shape, dtype=values.dtype, device=values.device, check_invariants=False
    )


@one_at_a_time
def _announce() -> None:
    # Torch says once a process that its sparse matrices are in beta: nothing that a user of ours could act on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(1, dtype=torch.int32, device="cpu")
        torch.sparse_csr_tensor(
            empty, empty[:0], empty[:0].double(), (0, 0), dtype=torch.float64, device="cpu", check_invariants=False
        )
    _announced.append(True)


__all__ = ["DEVICES", "DTYPES", "forward", "input_grad", "value_grad"]
