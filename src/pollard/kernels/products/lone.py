"""Products of one float64 sample or two, by numpy on one thread: so little work that waking threads costs more than it.

Rows are taken a run at a time, so that what is held besides operands and results stays in cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.products.derived import Run, runs

Doubles = NDArray[np.float64]


def forward(x: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``x @ W.T`` for x `(1, in)`: `(1, out)`."""
    sample, kept, rows = _numbers(x)[0], _numbers(values), topology.pattern.rows
    y = np.zeros((1, topology.shape[0]))
    for run in runs(topology):
        taken = sample.take(_columns(topology, run))
        for row in range(rows):
            y[0, row::rows][run.filled] = np.add.reduceat(taken * kept[run.values(row, rows)], run.starts)
    return torch.from_numpy(y)


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W`` for grad `(1, out)`: `(1, in)`."""
    upstream, kept, rows = _numbers(grad)[0], _numbers(values), topology.pattern.rows
    dx = np.zeros((1, topology.shape[1]))
    for run in runs(topology):
        products = kept[run.values(0, rows)] * upstream[::rows][run.filled].repeat(run.counts)
        for row in range(1, rows):
            products += kept[run.values(row, rows)] * upstream[row::rows][run.filled].repeat(run.counts)
        dx += np.bincount(_columns(topology, run), products, dx.size)
    return torch.from_numpy(dx)


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``(grad.T @ x)`` at the kept weights, for grad `(few, out)` and x `(few, in)`: one number a value."""
    rows, dw = topology.pattern.rows, np.empty(topology.nnz)
    for run in runs(topology):
        columns = _columns(topology, run)
        for sample, (upstream, row_of_x) in enumerate(zip(_numbers(grad), _numbers(x), strict=True)):
            taken = row_of_x.take(columns)
            for row in range(rows):
                here, repeated = dw[run.values(row, rows)], upstream[row::rows][run.filled].repeat(run.counts)
                if sample:
                    here += np.multiply(repeated, taken, out=repeated)
                else:
                    np.multiply(repeated, taken, out=here)
    return torch.from_numpy(dw)


def _numbers(tensor: Tensor) -> Doubles:
    numbers: Doubles = tensor.detach().numpy()
    return numbers


def _columns(topology: Topology, run: Run) -> NDArray[Any]:
    columns: NDArray[Any] = topology.indices.columns.numpy()
    return columns[run.first : run.last]


__all__ = ["forward", "input_grad", "value_grad"]
