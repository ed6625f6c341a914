"""Top-KAST: the forward pass reads the largest weights, the backward pass trains some more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pollard.errors import InvalidInput
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

    @property
    def remembers(self) -> bool:
        """With a dense memory."""
        return self.dense_memory

    def begin(self, weights: Weights, generator: Callable[[str], torch.Generator]) -> dict[str, tuple[Tensor, Tensor]]:
        """With a dense memory: keep the largest of all weights of each layer, as many as it does.

        Raises InvalidInput where nothing says what the others are.
        """
        del generator
        if not self.dense_memory:
            return {}
        for name, weight in weights.items():
            if weight.memory is None:
                raise InvalidInput(
                    f"layer {name!r}, which is sparse already, for a method with dense_memory=True",
                    "the dense weights, of which the largest are trained",
                    "Call pollard.top_kast(model, ...) on the dense model, pass dense= of the weights that the layers were "
                    "made of, or leave dense_memory= out.",
                )
        return {name: _largest(weight, weight.topology.grains) for name, weight in weights.items()}

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
    weight of `model`, and let B be the largest of it, from the start; what leaves B stays as it was.
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
