"""Rows of grains on a device, as kernels there read them: those of a topology, and those of its transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.products.derived import made_once
from pollard.kernels.products.placed import transpose_on


@dataclass(frozen=True, slots=True)
class Rows:
    """Each row makes `outs` outputs of the groups of `ins` inputs that its grains name.

    pointers: int32 `(rows + 1,)`, where each begins among the grains. places: `(grains,)`, the group of inputs. entries: int32
    `(grains,)`, where the values of a grain stand, or None where in this order. order: int32 `(rows,)`, from the longest on: one that
    is begun last would be waited for. longest: grains in a row. width: inputs. out_step, in_step: from a value to that of the next
    output and input of its grain.
    """

    pointers: Tensor
    places: Tensor
    entries: Tensor | None
    order: Tensor
    longest: int
    width: int
    outs: int
    ins: int
    out_step: int
    in_step: int

    @property
    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pointers, places and entries as kernels take them; where there are no entries, an array that is not read."""
        return self.pointers, self.places, self.pointers if self.entries is None else self.entries

    @property
    def walk(self) -> dict[str, Any]:
        """How kernels go through the values."""
        return {
            "OUTS": self.outs,
            "INS": self.ins,
            "OUT_STEP": self.out_step,
            "IN_STEP": self.in_step,
            "PERMUTED": self.entries is not None,
        }

    @property
    def features(self) -> int:
        """Outputs of all rows."""
        return len(self.order) * self.outs


def rows_on(topology: Topology, device: torch.device) -> Rows:
    """For ``x @ W.T``; made once."""

    def make() -> Rows:
        (pointers, places), pattern = topology.indices, topology.pattern
        placed = pointers.to(device), places.to(device), None
        steps = 1, pattern.rows
        return Rows(
            *placed, *_longest_first(pointers, device), topology.shape[1], pattern.rows, pattern.columns, *steps
        )

    return made_once(topology, ("rows", device), make)


def columns_on(topology: Topology, device: torch.device) -> Rows:
    """For ``grad @ W``; made once."""

    def make() -> Rows:
        turned, pattern = transpose_on(topology, device), topology.pattern
        placed = turned.row_pointers, turned.groups, turned.permutation
        ordered, steps = _longest_first(topology.transpose().row_pointers, device), (pattern.rows, 1)
        return Rows(*placed, *ordered, topology.shape[0], pattern.columns, pattern.rows, *steps)

    return made_once(topology, ("columns", device), make)


def _longest_first(pointers: Tensor, device: torch.device) -> tuple[Tensor, int]:
    """The order of rows, and how many grains the first has; found on the host, where `pointers` are."""
    lengths = pointers.diff()
    return lengths.argsort(descending=True, stable=True).int().to(device), int(lengths.max())


__all__ = ["Rows", "columns_on", "rows_on"]
