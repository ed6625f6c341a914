"""Which of some positions a topology keeps, and where."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from pollard.formats.indices import checked_positions
from pollard.formats.topology import Topology
from pollard.kernels.fallback import attempt
from pollard.kernels.launch import Launch
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import Target
from pollard.kernels.turning import even


def find(topology: Topology, positions: Tensor) -> Tensor:
    """The index of the grain of `topology` at each of `positions`, -1 where none is: int32 `(n,)`.

    positions: int64 `(n,)` flat positions `group * in + column`, strictly ascending. Raises TopologyError on others.

    >>> here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
    >>> find(here, torch.tensor([0, 1, 4])).tolist()
    [0, -1, 2]
    """
    positions = checked_positions(positions, topology.groups * topology.shape[1]).long()
    if not len(positions) or not topology.grains:
        return torch.full((len(positions),), -1, dtype=torch.int32)
    found = attempt(partial(_found, topology, positions))
    return find_slowly(topology, positions) if found is None else found


def find_slowly(topology: Topology, positions: Tensor) -> Tensor:
    """`find`, by binary search: its specification."""
    there = topology.positions()
    places = torch.searchsorted(there, positions)
    same = there.take(places.clamp(max=len(there) - 1)) == positions
    return torch.where(same, places, -1).int()


def _found(topology: Topology, positions: Tensor, target: Target) -> Tensor:
    threads, width = torch.get_num_threads(), topology.shape[1]
    borders = np.arange(topology.groups + 1, dtype=np.int64) * width
    starts = torch.from_numpy(np.searchsorted(positions.numpy(), borders).astype(np.int32))
    room = int(topology.row_pointers.diff().max()) + target.lanes
    found = torch.empty(len(positions), dtype=torch.int32)
    Launch(
        KernelSpec("find", target.isa), threads, threads, positions=positions, columns=topology.columns,
        pointers=topology.row_pointers, starts=starts, found=found, bounds=even(starts, threads),
        scratch=torch.empty(threads * room, dtype=torch.int32), PASSES=1, WIDTH=width, ROOM=room,
    )()  # fmt: skip
    return found
