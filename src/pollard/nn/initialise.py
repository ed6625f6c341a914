"""Initial values made straight for a topology: no dense weight exists at any moment.

What a neuron sums over is what it keeps, so the variance follows the kept fan-in of its row, not the width of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pollard.formats.topology import Topology

Initialiser = Callable[[Topology, torch.Generator | None], Tensor]

# Standard deviation of a standard normal cut at 2, by which a truncated one is divided to keep its variance.
TRUNCATED_STD = 0.87962566


def uniform(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Values from U(-b, b) with b = 1 / sqrt(kept fan-in), the default of `torch.nn.Linear` on what is kept; `(nnz,)`.

    >>> uniform(Topology.full((1, 4)), torch.Generator().manual_seed(0)).abs().max() <= 0.5
    tensor(True)
    """
    return _scaled(
        torch.empty(topology.nnz, dtype=torch.float32, device="cpu").uniform_(-1.0, 1.0, generator=generator),
        topology,
        _by_fan_in(topology, 1.0),
    )


def kaiming_normal(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Values from N(0, 2 / kept fan-in), for ReLU networks (He et al. 2015); `(nnz,)`."""
    return _scaled(
        torch.empty(topology.nnz, dtype=torch.float32, device="cpu").normal_(generator=generator),
        topology,
        _by_fan_in(topology, math.sqrt(2.0)),
    )


def xavier_normal(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Values from N(0, 2 / (kept fan-in + kept fan-out)), fan-out the mean over inputs (Glorot & Bengio 2010); `(nnz,)`."""
    fan_out = topology.nnz / max(1, topology.shape[1])
    scale = (2.0 / (_fan_in(topology) + fan_out).clamp(min=1.0)).sqrt()
    return _scaled(
        torch.empty(topology.nnz, dtype=torch.float32, device="cpu").normal_(generator=generator), topology, scale
    )


def lecun_normal(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Values from a normal cut at 2 standard deviations, of variance 1 / kept fan-in, as SNIP's code draws them; `(nnz,)`."""
    values = torch.nn.init.trunc_normal_(
        torch.empty(topology.nnz, dtype=torch.float32, device="cpu"), 0.0, 1.0, -2.0, 2.0, generator=generator
    )
    return _scaled(values, topology, _by_fan_in(topology, 1.0 / TRUNCATED_STD))


def uniform_bias(topology: Topology, generator: torch.Generator | None = None) -> Tensor:
    """Biases from U(-b, b) with b = 1 / sqrt(kept fan-in), zero for a row that keeps nothing; `(out,)`."""
    bound = topology.fan_in().clamp(min=1).float().rsqrt() * (topology.fan_in() > 0)
    return (
        torch.empty(topology.shape[0], dtype=torch.float32, device="cpu")
        .uniform_(-1.0, 1.0, generator=generator)
        .mul_(bound)
    )


def _scaled(values: Tensor, topology: Topology, scale: Tensor) -> Tensor:
    """`values` times the `scale` `(groups,)` of their rows, in place."""
    per_grain = scale.repeat_interleave(topology.indices.row_pointers.diff())
    values.view(-1, topology.pattern.size).mul_(per_grain[:, None])
    return values


def _by_fan_in(topology: Topology, gain: float) -> Tensor:
    return _fan_in(topology).clamp(min=1.0).rsqrt().mul_(gain)


def _fan_in(topology: Topology) -> Tensor:
    """Weights kept in each row of a group, float `(groups,)`."""
    return topology.indices.row_pointers.diff().float() * topology.pattern.columns


__all__ = ["Initialiser", "kaiming_normal", "lecun_normal", "uniform", "uniform_bias", "xavier_normal"]
