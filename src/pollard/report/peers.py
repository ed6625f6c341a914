"""The sparse libraries that happen to be installed: torch.sparse, SciPy and MKL.

Peers are spared whatever they could prepare once: their transposed copy of the weights is made beforehand, though training
would have to make it at every step.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from pollard.formats.matrix import SparseMatrix
from pollard.report.case import RESULTS, Contender, Operands, Reference


def peers(operands: Operands, op: str, reference: Reference) -> list[Contender]:
    """torch.sparse CSR, MKL through sparse_dot_mkl and SciPy, where they are installed and have the operation.

    None of them has products in half precision.
    """
    if operands.x.dtype in (torch.bfloat16, torch.float16):
        return []
    makers = (_torch_sparse, _scipy, _mkl)
    return [peer for make in makers if (peer := make(operands, op, reference)) is not None]


def _torch_sparse(operands: Operands, op: str, reference: Reference) -> Contender | None:
    grad, x = operands.grad, operands.x
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        weight = SparseMatrix(operands.values, operands.topology).to_torch_csr()
        back = operands.weight.T.contiguous().to_sparse_csr() if op in ("input_grad", "forward+backward") else weight
    rows = torch.arange(weight.shape[0], dtype=torch.int64, device="cpu").repeat_interleave(
        weight.crow_indices().diff()
    )
    positions = rows * weight.shape[1] + weight.col_indices()
    # The sampled product comes row by row, the values of a coarser grain do not.
    by_grain = torch.searchsorted(positions, operands.topology.weight_positions())

    def sampled() -> Tensor:
        out: Tensor = torch.sparse.sampled_addmm(weight, grad.T, x, beta=0.0).values()
        return out

    calls: dict[str, tuple[Callable[[], Any], Callable[[Any], dict[str, Tensor]]]] = {
        "forward": (lambda: (weight @ x.T).T, lambda out: {"output": out}),
        "input_grad": (lambda: (back @ grad.T).T, lambda out: {"input gradient": out}),
        "value_grad": (sampled, lambda out: {"value gradient": out[by_grain]}),
        "forward+backward": (
            lambda: ((weight @ x.T).T, (back @ grad.T).T, sampled()),
            lambda out: {"output": out[0], "input gradient": out[1], "value gradient": out[2][by_grain]},
        ),
    }
    if op not in calls:
        return None
    call, comparable = calls[op]
    try:
        call()
    except RuntimeError:
        # A torch that was built without MKL has no CSR product on the CPU: nothing to compare with.
        return None
    return Contender("torch_sparse", call, comparable, reference)


def _scipy(operands: Operands, op: str, reference: Reference) -> Contender | None:
    return _with_arrays("scipy", operands, op, reference, lambda weight, batch: weight @ batch)


def _mkl(operands: Operands, op: str, reference: Reference) -> Contender | None:
    # MKL brings a thread pool of its own, whose idle threads would spin on the cores that the next contender needs.
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    try:
        library = importlib.import_module("sparse_dot_mkl")
    except ImportError:
        return None
    library.mkl_set_num_threads(torch.get_num_threads())

    def product(weight: Any, batch: Any) -> Any:
        # With the batch strided MKL takes twice as long as it and a copy together.
        return library.dot_product_mkl(weight, np.ascontiguousarray(batch))

    return _with_arrays("mkl", operands, op, reference, product)


def _with_arrays(
    name: str, operands: Operands, op: str, reference: Reference, product: Callable[[Any, Any], Any]
) -> Contender | None:
    """A contender that multiplies a SciPy CSR by a NumPy matrix, features first: the transposes are views."""
    if op == "forward":
        weight, batch = csr_array(operands.weight.numpy()), operands.x.numpy().T
    elif op == "input_grad":
        weight, batch = csr_array(operands.weight.numpy().T), operands.grad.numpy().T
    else:
        return None
    return Contender(
        name, lambda: product(weight, batch).T, lambda out: {RESULTS[op]: torch.from_numpy(out)}, reference
    )
