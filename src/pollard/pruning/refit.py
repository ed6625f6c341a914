"""Repair: kept weights that make up for those that are gone, as far as data can tell, whatever chose them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from pollard.pruning.criteria.reconstruction import hessian, least_squares
from pollard.pruning.measurements import MEASUREMENTS
from pollard.pruning.network import Network, weights_of
from pollard.pruning.plan import Plan
from pollard.pruning.scoring import Batches, Scoring


def refit(plan: Plan, model: nn.Module, batch: Batches, *, chunk_size: int | None = None) -> Plan:
    """`plan` with the values that reproduce each layer's outputs in dense `model` best: least squares, row by row.

    With S what a row w keeps, and `H = 2 X X^T / n` of the layer's inputs, damped as SparseGPT damps it,

        w_S = H_SS^-1 H_S w

    SparseGPT comes near that as it chooses; this is the solution itself, for places that anything chose. The model is only read,
    in eval mode. batch: `(inputs, targets)`, or an iterable of such pairs; chunk_size: samples that pass the network at once.
    Raises InvalidInput for a model of other layers than the plan's.
    Source: Frantar, Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot, ICML 2023, eq. 2.

    >>> from pollard.pruning import prune
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(50, 8) @ torch.randn(8, 8)
    >>> plan = prune(model, "magnitude", 0.5)
    >>> fitted = refit(plan, model, (x, torch.zeros(50, dtype=torch.int64))).updated["0"]
    >>> weight = model[0].weight.detach()
    >>> lost = lambda values: float((x @ (torch.zeros(4, 8).masked_scatter(plan.mask("0"), values) - weight).T).square().mean())
    >>> lost(fitted) < lost(weight[plan.mask("0")])
    True
    """
    weights = weights_of(model, plan)
    network = Network(model, plan, batch, Scoring(chunk_size=chunk_size))
    with network.undisturbed():
        grams = MEASUREMENTS["input_gram"](network)
    updated = {name: _fitted(weight, plan[name], grams.pop(name)) for name, weight in weights.items()}
    return replace(plan, updated=updated)


def _fitted(weight: Tensor, topology: Topology, gram: Tensor) -> Tensor:
    """The new values `(nnz,)` of one layer."""
    curvature, rows = hessian(gram.cpu()), topology.pattern.rows
    groups = weight.double().cpu().unflatten(0, (-1, rows))
    # The rows of a group keep the same columns.
    kept = topology.mask()[::rows]
    fitted = torch.stack([least_squares(group, mask, curvature) for group, mask in zip(groups, kept, strict=True)])
    return SparseMatrix.from_dense(fitted.flatten(0, 1).to(weight.dtype), topology).values
