"""A topology of channels and taps as the gradient in the input reads it: by input channels, of one phase after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pollard.formats.indices import index_dtype
from pollard.formats.topology import Topology
from pollard.kernels.convolutions.window import Axis
from pollard.kernels.products.derived import made_once


@dataclass(frozen=True, slots=True)
class Turned:
    """Row ``phase * channels + c`` holds what is kept of channel c at taps of that phase: columns ``o * taps + t``, ascending.

    row_pointers: int32. columns: of the `index_dtype` of their number. permutation: int32, where each value stands in the
    topology's own order.
    """

    row_pointers: Tensor
    columns: Tensor
    permutation: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.row_pointers.nbytes + self.columns.nbytes + self.permutation.nbytes


def turned(topology: Topology, axes: tuple[Axis, Axis]) -> Turned:
    """`topology` turned, kept with it."""
    phases = tuple(down * len(axes[1].counts) + along for down in axes[0].phases for along in axes[1].phases)
    count = len(axes[0].counts) * len(axes[1].counts)
    return made_once(topology, ("turned", phases, count), lambda: _turned(topology, np.array(phases), count))


def _turned(topology: Topology, phases: np.ndarray, count: int) -> Turned:
    taps = len(phases)
    out, channels = topology.shape[0], topology.shape[1] // taps
    rows, columns = np.divmod(topology.weight_positions().numpy(), topology.shape[1])
    channel, tap = np.divmod(columns, taps)
    row = phases[tap] * channels + channel
    column = rows * taps + tap
    order = np.argsort(row * (out * taps) + column, kind="stable")
    pointers = np.zeros(count * channels + 1, np.int32)
    np.cumsum(np.bincount(row, minlength=count * channels), out=pointers[1:])
    kept = torch.from_numpy(column[order].astype(np.int32))
    return Turned(
        torch.from_numpy(pointers), kept.to(index_dtype(out * taps)), torch.from_numpy(order.astype(np.int32))
    )


__all__ = ["Turned", "turned"]
