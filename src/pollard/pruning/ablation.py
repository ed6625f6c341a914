"""Ablations: a plan, less one of the things that it knows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from pollard.pruning.network import weights_of
from pollard.pruning.plan import Plan


def shuffle(plan: Plan, generator: torch.Generator | None = None) -> Plan:
    """A plan with as many grains in every layer, at random places: what is left of `plan` is its densities.

    Values that a criterion had changed are gone with their places.
    Source: Frankle, Dziugaite, Roy, Carbin, Pruning neural networks at initialization, ICLR 2021, section 5.

    >>> from pollard.formats.pattern import Pattern
    >>> plan = Plan({"fc": Topology.from_positions((2, 8), Pattern(), torch.arange(4))})
    >>> shuffle(plan, torch.Generator().manual_seed(0))["fc"].positions().tolist()
    [6, 9, 10, 12]
    """
    moved = {name: _elsewhere(topology, generator) for name, topology in plan.items()}
    return replace(plan, topologies=moved, updated={})


def cross(plan: Plan, model: nn.Module) -> Plan:
    """The places of `plan` with the values that dense `model` has there, whatever values its criterion had found.

    What a plan is worth is its places and its values. Crossed with a network as it was drawn, as it was trained, or drawn
    anew, and refitted (`refit`), the same places tell which of the two it is. The model is only read.
    Raises InvalidInput for a model of other layers than the plan's.

    >>> from pollard.formats.pattern import Pattern
    >>> plan = Plan({"": Topology.from_positions((1, 3), Pattern(), torch.tensor([0, 2]))}, updated={"": torch.ones(2)})
    >>> layer = nn.Linear(3, 1)
    >>> bool((cross(plan, layer).updated[""] == layer.weight[0, ::2]).all())
    True
    """
    weights = weights_of(model, plan)
    updated = {name: SparseMatrix.from_dense(weight, plan[name]).values for name, weight in weights.items()}
    return replace(plan, updated=updated)


def _elsewhere(topology: Topology, generator: torch.Generator | None) -> Topology:
    if topology.pattern.density is not None:
        return Topology.random(topology.shape, topology.pattern.density, topology.pattern, generator)
    positions: Tensor = torch.randperm(topology.places, generator=generator, dtype=torch.int64, device="cpu")[
        : topology.grains
    ]
    return Topology.from_positions(topology.shape, topology.pattern, positions.sort().values)
