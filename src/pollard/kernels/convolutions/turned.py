"""A topology of channels and taps as the gradient in the input reads it: by input channels, of one phase after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.formats.indices import index_dtype
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.convolutions.window import Axis
from pollard.kernels.products.derived import made_once


@dataclass(frozen=True, slots=True)
class Turned:
    """W by input channels: row ``phase * channels + c`` keeps what is kept of channel c at taps of that phase, columns
    ``o * taps + t``.

    permutation: int32, where each value stands in the topology's own order.
    """

    topology: Topology
    permutation: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.topology.bytes + self.permutation.nbytes


def turned(topology: Topology, axes: tuple[Axis, Axis]) -> Turned:
    """`topology` turned, kept with it."""
    down, along = axes
    phases = tuple(one * len(along.counts) + other for one in down.phases for other in along.phases)
    count = len(down.counts) * len(along.counts)
    return made_once(topology, ("turned", phases, count), lambda: _turned(topology, np.array(phases), count))


def _turned(topology: Topology, phases: NDArray[np.int64], count: int) -> Turned:
    taps = len(phases)
    channels = topology.shape[1] // taps
    shape = count * channels, topology.shape[0] * taps
    rows, columns = np.divmod(topology.weight_positions().numpy(), topology.shape[1])
    channel, tap = np.divmod(columns, taps)
    row, column = phases[tap] * channels + channel, rows * taps + tap
    order = np.argsort(row * shape[1] + column, kind="stable")
    pointers = np.zeros(shape[0] + 1, np.int32)
    np.cumsum(np.bincount(row, minlength=shape[0]), out=pointers[1:])
    kept = torch.from_numpy(column[order].astype(np.int32)).to(index_dtype(shape[1]))
    made = Topology.trusted(shape, Pattern(), torch.from_numpy(pointers), kept)
    return Turned(made, torch.from_numpy(order.astype(np.int32)))


__all__ = ["Turned", "turned"]
