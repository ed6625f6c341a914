"""One layer at one update: what a method's rules are asked about."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pollard.training.weights import Weight


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """The `weight` of one layer, of which `keep` grains shall stay and `target` shall be kept afterwards.

    fraction: the share of grains that this update exchanges. generator: all randomness of this change; the same on every
    storage and every process. last: whether it is the last layer of the network.
    """

    weight: Weight
    keep: int
    target: int
    fraction: float
    generator: torch.Generator
    last: bool = False

    @property
    def total(self) -> int:
        """Grains of the dense weight."""
        return self.weight.topology.places

    def positions(self, stays: Tensor) -> Tensor:
        """The flat positions of the grains that bool `stays` names, ascending int64."""
        return self.weight.topology.positions(stays)
