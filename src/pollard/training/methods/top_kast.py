"""Top-KAST: the forward pass reads the largest weights, the backward pass trains some more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pollard.pruning.masks import top_mask, top_positions
from pollard.training.methods import drop, grow
from pollard.training.methods.change import Change
from pollard.training.methods.method import Method, Weights, method, often
from pollard.training.schedules import Schedule, cosine, piecewise
from pollard.training.weights import Weight


@dataclass(frozen=True, kw_only=True)
class ForwardSet(Method):
    """share: of what is kept, how much the forward pass reads. decay: of those; the others decay `1 / density` times faster."""

    share: float
    reading: float
    penalty: float

    def begin(self, weights: Weights, generator: Callable[[str], torch.Generator]) -> dict[str, tuple[Tensor, Tensor]]:
        """With a dense memory: draw what no layer has kept, and keep the largest of all."""
        if not self.dense_memory:
            return {}
        changes = {}
        for name, weight in weights.items():
            kept, topology = weight.values(), weight.topology
            drawn = torch.randn(topology.shape, generator=generator(name), dtype=torch.float32, device="cpu").to(kept)
            weight.memory = drawn * kept.square().mean().sqrt()
            changes[name] = _largest(weight, topology.grains)
        return changes

    def exchange(self, change: Change) -> tuple[Tensor, Tensor]:
        """As every method; with a dense memory, the largest of all weights, trained and remembered."""
        if not self.dense_memory:
            return super().exchange(change)
        return _largest(change.weight, change.target)

    def after_update(self, weights: Weights, step: int) -> None:
        """Choose anew what the forward pass reads: the largest `|w|`; at the end, all that is left."""
        for weight in weights.values():
            if step >= self.end:
                weight.use(None)
                continue
            grains = weight.topology.grains
            scores = weight.by_grain(weight.values().abs())
            read = top_mask(scores, round(self.share * grains), layer=weight.name)
            weight.use(read.repeat_interleave(weight.size))

    def before_step(self, weights: Weights, step: int) -> None:
        """Add the gradient of the exploration loss: `penalty / 2 |w|^2` for what is read, over the density for the rest."""
        if step >= self.end:
            return
        for weight in weights.values():
            active, values = weight.active(), weight.values()
            if active is not None and weight.gradient() is not None:
                strength = torch.where(active, self.penalty, self.penalty / self.reading).to(values.dtype)
                weight.add_gradient(values * strength)

    def step_cost(self, forward: float, dense: float) -> float:
        """The forward pass and the gradient of the inputs are of what is read, that of the weights is of all kept."""
        del dense
        return (2.0 * self.share + 1.0) * forward


def _largest(weight: Weight, count: int) -> tuple[Tensor, Tensor]:
    """What stays and what comes, so that the `count` largest grains of the remembered weight are kept."""
    topology, memory = weight.topology, weight.memory
    assert memory is not None
    memory.view(-1)[topology.weight_positions()] = weight.values()
    scores = topology.pattern.grain_sum(memory.abs()).reshape(-1)
    best = top_positions(scores, count, layer=weight.name)
    here = topology.positions()
    return torch.isin(here, best, assume_unique=True), best[~torch.isin(best, here, assume_unique=True)]


@method
def top_kast(
    density: float,
    steps: int,
    *,
    every: int = 0,
    margin: float = 0.0,
    fraction: float = 0.3,
    penalty: float = 1e-4,
    dense_memory: bool = False,
) -> Method:
    """Train a set B of weights, of which the forward pass reads the largest, A; both are chosen anew every 100 steps.

    `density` is that of A, and of the network at the end; B holds `margin` more (0: as much again). At an update a
    `fraction` of B, falling along a cosine, gives way to random newcomers at zero. The last update keeps A alone.
    every: steps between updates; 0 for 100, or ten in a short run. dense_memory: as published: hold the dense
    weight, and let B be the largest of it; what leaves B stays as it was.
    Source: Jayakumar et al., Top-KAST: Top-K always sparse training, NeurIPS 2020.

    >>> top_kast(0.1, steps=1000).density(0), top_kast(0.1, steps=1000).density(1000)
    (0.2, 0.1)
    """
    kept = min(1.0, density + (margin or density))
    every = min(often(every, 100, steps), steps)
    end = steps // every * every
    exchange = cosine(fraction * (1.0 - density / kept), end)
    return ForwardSet(
        name="top-kast",
        cite="jayakumar2020topkast",
        every=every,
        end=end,
        fraction=partial(_until, end, exchange),
        density=piecewise({0: kept, end: density}),
        drop=drop.by_magnitude,
        grow=grow.at_random,
        share=density / kept,
        reading=density,
        penalty=penalty,
        dense_memory=dense_memory,
    )


def _until(end: int, exchange: Schedule, step: int) -> float:
    return 0.0 if step >= end else exchange(step)
