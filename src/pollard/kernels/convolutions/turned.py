"""A topology of channels and taps as the gradient in the input reads it: by input channels of one phase after another, or by shift."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.formats.indices import index_dtype
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.convolutions.window import Axis, Sizes
from pollard.kernels.products.derived import made_once


class Turned(NamedTuple):
    """Grains of W in another order.

    permutation: int32, where each value stands in the topology's own order.
    """

    topology: Topology
    permutation: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.topology.bytes + self.permutation.nbytes


def turned(topology: Topology, axes: tuple[Axis, Axis]) -> Turned:
    """`topology` by input channels: row ``phase * channels + c`` keeps what is kept of channel c at taps of that phase, columns
    ``o * taps + t``. Kept with it.
    """
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
    return _sorted(Pattern(), shape, phases[tap] * channels + channel, rows * taps + tap)


def by_shift(topology: Topology, kernel: Sizes) -> Turned:
    """`topology`, of grains of one column, by row group and shift along rows: group ``g * kernel[1] + j`` keeps what g does at
    taps of column j, columns ``c * kernel[0] + i``. Kept with it.
    """
    return made_once(topology, ("by shift", kernel), lambda: _by_shift(topology, kernel))


def _by_shift(topology: Topology, kernel: Sizes) -> Turned:
    down, along = kernel
    groups = np.repeat(np.arange(topology.groups), np.diff(topology.indices.row_pointers.numpy()))
    channel, i, j = np.unravel_index(
        topology.indices.columns.numpy().astype(np.int64), (topology.shape[1] // (down * along), down, along)
    )
    shape = topology.shape[0] * along, topology.shape[1] // along
    return _sorted(topology.pattern, shape, groups * along + j, channel * down + i)


def _sorted(pattern: Pattern, shape: tuple[int, int], group: NDArray[np.int64], column: NDArray[np.int64]) -> Turned:
    """Of grains of one column, of those row groups and columns."""
    order = np.argsort(group * shape[1] + column, kind="stable")
    pointers = np.zeros(shape[0] // pattern.rows + 1, np.int32)
    np.cumsum(np.bincount(group, minlength=len(pointers) - 1), out=pointers[1:])
    kept = torch.from_numpy(column[order].astype(np.int32)).to(index_dtype(shape[1]))
    made = Topology.trusted(shape, pattern, torch.from_numpy(pointers), kept)
    values = order[:, None] * pattern.rows + np.arange(pattern.rows)
    return Turned(made, torch.from_numpy(values.reshape(-1).astype(np.int32)))


__all__ = ["Turned", "by_shift", "turned"]
