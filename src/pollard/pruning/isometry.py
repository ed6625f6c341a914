"""Repair: kept weights that pass signals at the scale they come in, after pruning has broken that."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.pruning.ablation import cross
from pollard.pruning.plan import Plan

ITERATIONS, HISTORY = 200, 20


def restore_isometry(plan: Plan, model: nn.Module, *, iterations: int = ITERATIONS) -> Plan:
    """`plan` with new values for the kept weights of every layer, so that `W W^T` is as near to the identity as they allow.

    Minimises `||W W^T - I||_F^2` over the kept weights from those of dense `model`, or `||W^T W - I||_F^2` where a layer has
    more outputs than inputs, by L-BFGS: no data is looked at. The published 10,000 steps of gradient descent at 0.1 aim at
    the same minimum. A layer that gets no nearer keeps its values. Raises InvalidInput for less than one iteration.
    Source: Lee, Ajanthan, Gould, Torr, A signal propagation perspective for pruning neural networks at initialization,
    ICLR 2020, eq. 9.

    >>> from pollard.pruning import prune
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 4))
    >>> weight = restore_isometry(prune(model, "magnitude", 0.5), model).updated["0"]
    >>> round(float(weight.square().sum()), 2)  # four rows of length 1
    4.0
    """
    if iterations < 1:
        raise InvalidInput(f"iterations={iterations}", "at least 1", f"Leave iterations= out for {ITERATIONS}.")
    start = {**cross(plan, model).updated, **plan.updated}
    updated = {name: _repaired(SparseMatrix(start[name], topology), iterations) for name, topology in plan.items()}
    return replace(plan, updated=updated)


def distance_from_isometry(weight: Tensor) -> Tensor:
    """`||W W^T - I||_F^2` of a weight `(out, in)`, or of its transpose where it has more outputs than inputs.

    >>> distance_from_isometry(2 * torch.eye(2))
    tensor(18.)
    """
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    gram = wide @ wide.T
    gram = gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return gram.square().sum()


def _repaired(matrix: SparseMatrix, iterations: int) -> Tensor:
    """The new values `(nnz,)` of one layer."""
    if not matrix.values.numel():
        return matrix.values
    start = matrix.to_dense().double()
    mask = matrix.topology.mask().to(start.device)
    kept = start[mask].requires_grad_()
    # Its memory is that of kept weights, so many pairs of them.
    optimizer = torch.optim.LBFGS([kept], max_iter=iterations, history_size=HISTORY, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        distance = distance_from_isometry(torch.zeros_like(start).masked_scatter(mask, kept))
        distance.backward()
        return distance

    with torch.enable_grad():
        optimizer.step(closure)
    found = torch.zeros_like(start).masked_scatter(mask, kept.detach())
    if not distance_from_isometry(found) < distance_from_isometry(start):
        return matrix.values
    return SparseMatrix.from_dense(found.to(matrix.values.dtype), matrix.topology).values
