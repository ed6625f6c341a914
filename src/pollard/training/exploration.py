"""Which weights were ever kept: the explored rate of in-time over-parameterisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pollard.formats.topology import Topology

# A layer whose marks take no more than this, or than a byte a kept grain, is counted in full.
SMALL = 1 << 20


class Exploration:
    """Marks the grains of a layer that were ever kept, in memory of a byte a kept grain.

    Where a mark for every grain of the dense weight would take more, every m-th row group is marked, m as small as fits:
    the rate is then that of these rows, an estimate.

    >>> here = Topology.from_positions((1, 4), "unstructured", torch.tensor([0, 2]))
    >>> explored = Exploration(here)
    >>> explored.add(torch.tensor([1]))
    >>> explored.rate
    0.75
    """

    def __init__(self, topology: Topology) -> None:
        self._width = topology.width
        grains = topology.groups * self._width
        self._every = max(1, math.ceil(grains / max(SMALL, topology.grains)))
        self._marks = torch.zeros(-(-topology.groups // self._every) * self._width, dtype=torch.bool, device="cpu")
        self.add(topology.positions())

    def add(self, positions: Tensor) -> None:
        """Mark the grains at these flat positions, ascending."""
        if self._every > 1:
            positions = self._counted(positions)
        self._marks.index_fill_(0, positions, value=True)

    def _counted(self, positions: Tensor) -> Tensor:
        """Where the marks stand of those of `positions`, ascending, that have any."""
        firsts = torch.arange(len(self._marks) // self._width, dtype=torch.int64, device="cpu") * (
            self._every * self._width
        )
        starts = torch.searchsorted(positions, firsts)
        lengths = torch.searchsorted(positions, firsts + self._width) - starts
        before = lengths.cumsum(0) - lengths
        found = torch.arange(int(lengths.sum()), dtype=torch.int64, device="cpu") + (starts - before).repeat_interleave(
            lengths
        )
        skipped = torch.arange(len(firsts), dtype=torch.int64, device="cpu") * ((self._every - 1) * self._width)
        return positions[found] - skipped.repeat_interleave(lengths)

    @property
    def rate(self) -> float:
        """The fraction of grains that were ever kept (R_s of Liu et al. 2021)."""
        return int(self._marks.count_nonzero()) / max(1, len(self._marks))

    def state_dict(self) -> dict[str, Any]:
        """The marks."""
        return {"every": self._every, "marks": self._marks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from marks, wherever they were read to."""
        self._every, self._marks = state["every"], state["marks"].to("cpu", copy=True)
