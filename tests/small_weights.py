"""Layers of a few weights, written out number by number, so that a test can say by hand what a rule makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.training.methods.change import Change
from pollard.training.weights import CompressedWeight, MaskedWeight, Weight

STORAGES = ("compressed", "masked")


def small_weight(dense, *, pattern="unstructured", storage="compressed", optimizer=torch.optim.SGD) -> Weight:
    """The layer of weight `dense`, rows of numbers of which NaN are not kept, in float64."""
    numbers = torch.tensor(dense, dtype=torch.float64)
    topology = Topology.from_mask(~numbers.isnan(), pattern)
    linear = torch.nn.Linear(numbers.shape[1], numbers.shape[0], bias=False, dtype=torch.float64)
    linear.weight.data = numbers.nan_to_num(0.0)
    if storage == "masked":
        masked = MaskedLinear(linear.weight, topology)
        return MaskedWeight("small", masked, optimizer(masked.parameters(), 0.1))
    sparse = SparseLinear.from_dense(linear, topology)
    return CompressedWeight("small", sparse, optimizer(sparse.parameters(), 0.1))


def seen(weight: Weight, gradient) -> Weight:
    """`weight` after a pass whose gradient of the dense weight is `gradient`, rows of numbers: inputs are the unit vectors."""
    dy = torch.tensor(gradient, dtype=torch.float64).t()
    weight.passes.watch(1)
    weight.layer(torch.eye(dy.shape[0], dtype=torch.float64)).backward(dy)
    return weight


def change(weight: Weight, keep: int, target: int, *, seed: int = 0, last: bool = False) -> Change:
    """The change in which `keep` grains of `weight` stay, and `target` are kept afterwards."""
    return Change(weight, keep, target, 0.5, torch.Generator().manual_seed(seed), last=last)


def after(weight: Weight, exchanged: tuple[Tensor, Tensor]) -> list[int]:
    """The positions that are kept after what stays and what comes, ascending."""
    stays, grown = exchanged
    return sorted(weight.topology.positions(stays).tolist() + grown.tolist())
