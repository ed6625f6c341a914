"""Rows of grains on a device, as kernels there read them: those of a topology, and those of its transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.products.derived import made_once


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
    def nbytes(self) -> int:
        """Bytes held on the device."""
        held = (self.pointers, self.places, self.order)
        return sum(each.nbytes for each in held) + (0 if self.entries is None else self.entries.nbytes)

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
        pattern = topology.pattern
        return _rows(
            (*topology.indices, None), device, topology.shape[1], (pattern.rows, pattern.columns), (1, pattern.rows)
        )

    return made_once(topology, ("rows", device), make)


def columns_on(topology: Topology, device: torch.device) -> Rows:
    """For ``grad @ W``; made once."""

    def make() -> Rows:
        turned, pattern = topology.transpose(), topology.pattern
        arrays = turned.row_pointers, turned.groups, turned.permutation
        return _rows(arrays, device, topology.shape[0], (pattern.columns, pattern.rows), (pattern.rows, 1))

    return made_once(topology, ("columns", device), make)


def _rows(
    arrays: tuple[Tensor, Tensor, Tensor | None],
    device: torch.device,
    width: int,
    sizes: tuple[int, int],
    steps: tuple[int, int],
) -> Rows:
    pointers, places, entries = arrays
    lengths = pointers.int().diff()
    order = lengths.argsort(descending=True, stable=True).int()
    moved = None if entries is None else entries.to(device)
    placed = pointers.int().to(device), places.to(device), moved, order.to(device)
    return Rows(*placed, int(lengths.max()), width, *sizes, *steps)


__all__ = ["Rows", "columns_on", "rows_on"]
