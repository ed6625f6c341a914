"""SRigL: every neuron has the same fan-in, or none at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pollard.errors import PatternError
from pollard.formats.pattern import Pattern
from pollard.formats.sampling import sample_absent
from pollard.formats.topology import Topology
from pollard.pruning.masks import top_positions
from pollard.pruning.running_top import EXCLUDED
from pollard.training.methods import grow
from pollard.training.methods.change import Change
from pollard.training.methods.method import Method, Weights, method, often
from pollard.training.methods.rigl import GradientGrowth
from pollard.training.schedules import cosine
from pollard.training.weights import Weight


@dataclass(frozen=True, kw_only=True)
class ConstantFanIn(GradientGrowth):
    """salient: the share of the fan-in that must be salient, or the neuron is ablated; 0 ablates none."""

    salient: float

    @property
    def resizes(self) -> bool:
        """The common fan-in is a whole number, and neurons are ablated."""
        return True

    def require(self, patterns: Mapping[str, Pattern]) -> None:
        """Unstructured layers only."""
        for name, pattern in patterns.items():
            if pattern != Pattern():
                raise PatternError(
                    f"pattern {pattern} in layer {name!r}",
                    "unstructured layers: here each row has its own columns, as many as every other",
                    "Leave pattern= out.",
                )

    def begin(self, weights: Weights, generator: Callable[[str], torch.Generator]) -> dict[str, tuple[Tensor, Tensor]]:
        """Each neuron keeps its largest weights up to the common fan-in, and gets random ones where it has fewer."""
        return {name: _evened(weight, generator(name)) for name, weight in weights.items()}

    def exchange(self, change: Change) -> tuple[Tensor, Tensor]:
        """Ablate, spread what is to be kept over the neurons that are left, drop by `|w|`, grow by gradient within each."""
        weight, topology = change.weight, change.weight.topology
        stays = self.drop(change)
        staying = change.positions(stays)
        coming = grow.by_gradient(change, stays, change.target - len(staying))
        most = self._fan_in(change, _per_row(staying, topology) + _per_row(coming, topology))
        best = _best_of_rows(weight.values().abs()[stays], staying // topology.shape[1], most)
        stays, taken = stays.masked_scatter(stays, best), staying[best]
        return stays, _grown_in_rows(weight, taken, most - _per_row(taken, topology))

    def _fan_in(self, change: Change, salient: Tensor) -> Tensor:
        """The fan-in of each neuron afterwards: the same for all that live, 0 for the others, until they are salient again."""
        topology = change.weight.topology
        fan_in = topology.fan_in()
        living = fan_in > 0
        if self.salient > 0.0 and not change.last:
            surviving = salient >= max(1.0, self.salient * float(fan_in.max()))
            living = surviving if bool(surviving.any()) else living
        common = change.target // max(1, int(living.sum()))
        return living * min(topology.shape[1], max(1, common))


def _evened(weight: Weight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    topology = weight.topology
    (out, width), scores = topology.shape, weight.values().abs()
    fan_in = max(1, topology.grains // out)
    stays, grown = torch.zeros(topology.grains, dtype=torch.bool, device="cpu"), []
    for row, (first, last) in enumerate(pairwise(topology.indices.row_pointers.tolist())):
        stay = top_positions(scores[first:last], min(fan_in, last - first))
        present = topology.indices.columns[first:last][stay].long().numpy()
        stays[stay + first] = True
        drawn = sample_absent(width, present, fan_in - len(stay), generator)
        grown.append(torch.from_numpy(drawn) + row * width)
    return stays, torch.cat(grown)


def _per_row(positions: Tensor, topology: Topology) -> Tensor:
    return torch.bincount(positions // topology.shape[1], minlength=topology.shape[0])


def _best_of_rows(scores: Tensor, rows: Tensor, most: Tensor) -> Tensor:
    """Which are the `most[row]` highest scores of each row; ties by index. rows: ascending."""
    order = np.lexsort((-scores.float().cpu().numpy(), rows.numpy()))
    first = np.searchsorted(rows.numpy(), rows.numpy())
    best = np.empty(len(order), np.bool_)
    best[order] = np.arange(len(order)) - first < most[rows].numpy()
    return torch.from_numpy(best)


def _grown_in_rows(weight: Weight, taken: Tensor, wanted: Tensor) -> Tensor:
    """The `wanted[row]` positions of each row with the largest gradients, of those not `taken`."""
    width = weight.topology.shape[1]
    grown = [torch.empty(0, dtype=torch.int64, device="cpu")]
    for top, block in weight.passes.blocks(weight.topology):
        bounds = torch.searchsorted(
            taken, torch.tensor([top * width, (top + len(block)) * width], dtype=torch.int64, device="cpu")
        ).tolist()
        block.view(-1)[taken[bounds[0] : bounds[1]] - top * width] = EXCLUDED
        for row in torch.nonzero(wanted[top : top + len(block)]).flatten().tolist():
            found = top_positions(block[row], int(wanted[top + row]), layer=weight.name)
            grown.append(found + (top + row) * width)
    return torch.cat(grown)


@method
def srigl(
    density: float, steps: int, *, every: int = 0, fraction: float = 0.3, until: float = 0.75, salient: float = 0.3
) -> Method:
    """Structured RigL: a constant fan-in, and no neuron that has too few salient weights.

    Salient are the largest `|w|` that stay and the largest `|dL/dw|` that would come. A neuron with fewer of them than
    `salient` times the fan-in is ablated, except in the last layer, and the others share its weights; gradients may bring it
    back, as each update asks all neurons anew. 0 ablates none.
    every: steps between updates; 0 for 100, or ten updates in a short run.
    Source: Lasby et al., Dynamic sparse training with structured sparsity, ICLR 2024.

    >>> srigl(0.1, steps=2000).due(100)
    True
    """
    del density
    end = round(until * steps)
    every = often(every, 100, end)
    return ConstantFanIn(
        name="srigl",
        cite="lasby2024srigl",
        every=every,
        end=end,
        fraction=cosine(fraction, end),
        grow=grow.by_gradient,
        window=1,
        instead_of_step=True,
        salient=salient,
    )
