"""What a decision is made of, whether weights are there or come some rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pollard.formats.topology import Topology
from pollard.pruning.allocation import Allocation, allocation_name, reads
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import CRITERIA, Criterion
from pollard.pruning.measurements import MEASUREMENTS
from pollard.pruning.network import Network
from pollard.pruning.plan import Plan

Measured = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Decision(ABC):
    """All that is fixed while rounds go by."""

    rule: Criterion
    allocate: Allocation
    network: Network
    layers: dict[str, Layer]
    within: Mapping[str, Topology]
    recover: bool
    invert: bool
    # Where the last cut fell among scores of zero.
    ties: dict[str, tuple[int, int]] = field(default_factory=dict)

    @abstractmethod
    def plan(self, densities: list[float], asked: float) -> Plan:
        """The plan after the last of `densities`, one a round."""

    @property
    def weighing(self) -> Criterion | None:
        """The criterion whose scores the allocation reads, where it names one of its own."""
        return CRITERIA.get(reads(self.allocate))

    def measured(self) -> Measured:
        """What the criteria need to know of the network as it is now, by need and layer."""
        needs = (*self.rule.needs, *(self.weighing.needs if self.weighing else ()))
        return {need: MEASUREMENTS[need](self.network) for need in dict.fromkeys(needs) if need in MEASUREMENTS}

    def given(self, rule: Criterion, name: str, measured: Measured, *, keep: bool) -> dict[str, Any]:
        """What a criterion is called with for a layer; unless it is to `keep` them, measurements are let go."""
        own = {"weight": self.network.weights[name], "generator": self.network.generator}
        found = {need: by_layer[name] if keep else by_layer.pop(name) for need, by_layer in measured.items()}
        return {need: (own | found)[need] for need in rule.needs}

    def decided(self, topologies: Mapping[str, Topology], asked: float, updated: Mapping[str, Tensor]) -> Plan:
        """The plan of these, with how it was decided."""
        told = {"criterion": self.rule.name, "allocation": allocation_name(self.allocate), "asked": asked}
        return Plan(topologies, **told, updated=updated)  # type: ignore[arg-type]  # of several types


__all__ = ["Decision", "Measured"]
