"""The index arrays of a topology as torch's sparse matrices take them, int32, on the device where products run.

Copies are made once each; on the CPU they are its own, of columns a copy for the time of a product where those are narrower.
What comes from the host's pageable memory has arrived when the copy returns: whatever stream reads it finds it there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.formats.indices import Indices
from pollard.formats.topology import Topology
from pollard.formats.transpose import Transpose
from pollard.kernels.products.derived import made_once


def indices_on(topology: Topology, device: torch.device) -> Indices:
    """Row pointers and columns."""

    def make() -> Indices:
        return Indices(*(each.int().to(device) for each in topology.indices))

    return make() if device.type == "cpu" else made_once(topology, ("indices", device), make)


def transpose_on(topology: Topology, device: torch.device) -> Transpose:
    """The transpose."""
    if device.type == "cpu":
        return topology.transpose()

    def make() -> Transpose:
        made = topology.transpose()
        return Transpose(*(array.to(device) for array in (made.row_pointers, made.groups, made.permutation)))

    return made_once(topology, ("transpose", device), make)


def positions_on(topology: Topology, device: torch.device) -> Tensor:
    """Flat position of each weight in the dense matrix, `(nnz,)`, int32 where those fit; on the CPU made anew each time."""

    def make() -> Tensor:
        small = topology.shape[0] * topology.shape[1] < 1 << 31
        return topology.weight_positions().to(device, torch.int32 if small else torch.int64)

    return make() if device.type == "cpu" else made_once(topology, ("positions", device), make)


def coordinates_on(topology: Topology, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each weight, int64 `(nnz,)`; on the CPU made anew each time, as they are larger than all else."""
    width = max(topology.shape[1], 1)

    def make() -> tuple[Tensor, Tensor]:
        positions = topology.weight_positions()
        return torch.div(positions, width, rounding_mode="floor").to(device), (positions % width).to(device)

    return make() if device.type == "cpu" else made_once(topology, ("coordinates", device), make)
