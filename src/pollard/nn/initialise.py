"""Initial values made straight for a topology: no dense weight exists at any moment.

What a neuron sums over is what it keeps, so the variance follows the kept fan-in of its row, not the width of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pollard.formats.topology import Topology

Initialiser = Callable[[Topology, torch.Generator | None], Tensor]

# Standard deviation of a standard normal cut at 2, by which a truncated one is divided to keep its variance.
TRUNCATED_STD = 0.87962566


class Law(NamedTuple):
    """How initial values are drawn: numbers at a scale, and the scale that fan-in and fan-out ask for.

    draw_: (tensor, scale, generator) fills a tensor. scale: (fan-in of each row, fan-out) to one number a row.
    """

    draw_: Callable[[Tensor, float, torch.Generator | None], object]
    scale: Callable[[Tensor, float], Tensor]

    def kept(self, topology: Topology, generator: torch.Generator | None) -> Tensor:
        """Values for what `topology` keeps, by the kept fan-in of each row and the mean kept fan-out, `(nnz,)`."""
        values = torch.empty(topology.nnz, dtype=torch.float32, device="cpu")
        self.draw_(values, 1.0, generator)
        counts = topology.indices.row_pointers.diff()
        scale = self.scale(counts.float() * topology.pattern.columns, topology.nnz / max(1, topology.shape[1]))
        values.view(-1, topology.pattern.size).mul_(scale.repeat_interleave(counts)[:, None])
        return values

    def fill_(self, weight: Tensor, fan_in: int, fan_out: int) -> None:
        """Draws the whole of a dense `weight`, in place, by torch's generator or by the weight's own."""
        scale = self.scale(torch.tensor([fan_in], dtype=torch.float64, device="cpu"), fan_out)
        self.draw_(weight, float(scale), None)


def _by_fan_in(gain: float) -> Callable[[Tensor, float], Tensor]:
    return lambda fan_in, _: fan_in.clamp(min=1.0).rsqrt().mul_(gain)


def _uniform_(tensor: Tensor, scale: float, generator: torch.Generator | None) -> object:
    return tensor.uniform_(-scale, scale, generator=generator)


def _normal_(tensor: Tensor, scale: float, generator: torch.Generator | None) -> object:
    return tensor.normal_(0.0, scale, generator=generator)


def _truncated_(tensor: Tensor, scale: float, generator: torch.Generator | None) -> object:
    return torch.nn.init.trunc_normal_(tensor, 0.0, scale, -2.0 * scale, 2.0 * scale, generator=generator)


LAWS = {
    "lecun": Law(_truncated_, _by_fan_in(1.0 / TRUNCATED_STD)),
    "kaiming": Law(_normal_, _by_fan_in(math.sqrt(2.0))),
    "xavier": Law(_normal_, lambda fan_in, fan_out: (2.0 / (fan_in + fan_out).clamp(min=1.0)).sqrt()),
    "torch": Law(_uniform_, _by_fan_in(1.0)),
}


def uniform(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Values from U(-b, b) with b = 1 / sqrt(kept fan-in), the default of `torch.nn.Linear` on what is kept; `(nnz,)`.

    >>> uniform(Topology.full((1, 4)), torch.Generator().manual_seed(0)).abs().max() <= 0.5
    tensor(True)
    """
    return LAWS["torch"].kept(topology, generator)


def kaiming_normal(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Values from N(0, 2 / kept fan-in), for ReLU networks (He et al. 2015); `(nnz,)`."""
    return LAWS["kaiming"].kept(topology, generator)


def xavier_normal(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Values from N(0, 2 / (kept fan-in + kept fan-out)), fan-out the mean over inputs (Glorot & Bengio 2010); `(nnz,)`."""
    return LAWS["xavier"].kept(topology, generator)


def lecun_normal(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Values from a normal cut at 2 standard deviations, of variance 1 / kept fan-in, as SNIP's code draws them; `(nnz,)`."""
    return LAWS["lecun"].kept(topology, generator)


def uniform_bias(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Biases from U(-b, b) with b = 1 / sqrt(kept fan-in), zero for a row that keeps nothing; `(out,)`."""
    bound = topology.fan_in().clamp(min=1).float().rsqrt() * (topology.fan_in() > 0)
    return (
        torch.empty(topology.shape[0], dtype=torch.float32, device="cpu")
        .uniform_(-1.0, 1.0, generator=generator)
        .mul_(bound)
    )


__all__ = ["LAWS", "Initialiser", "Law", "kaiming_normal", "lecun_normal", "uniform", "uniform_bias", "xavier_normal"]
