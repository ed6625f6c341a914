"""How many grains each layer is to keep after an update."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from pollard.composites import axes_of
from pollard.pruning.allocation import ALLOCATIONS, whole_grains
from pollard.pruning.budget import Layer
from pollard.pruning.masks import top_mask
from pollard.training.methods.method import Method
from pollard.training.weights import Weight


def targets(
    model: nn.Module, method: Method, moving: Mapping[str, Weight], held: Mapping[str, int], step: int
) -> dict[str, int]:
    """Grains to keep of each layer of `moving` at `step`: what it has `held`, or its part of a density that moves."""
    if method.density is None or not moving:
        return dict(held)
    density = method.density(step)
    if method.allocation == "global":
        return _by_global_magnitude(density, moving)
    layers = {name: Layer(axes_of(model, name), weight.topology.pattern) for name, weight in moving.items()}
    return whole_grains(layers, ALLOCATIONS[method.allocation](layers, density), density)


def _by_global_magnitude(density: float, moving: Mapping[str, Weight]) -> dict[str, int]:
    """What one ranking of the magnitudes of all kept weights leaves in each layer."""
    weights = list(moving.values())
    scores = [weight.by_grain(weight.values().abs()) for weight in weights]
    total = sum(math.prod(weight.topology.shape) // weight.size for weight in weights)
    if round(density * total) == total:
        return {name: math.prod(weight.topology.shape) // weight.size for name, weight in moving.items()}
    count = min(round(density * total), sum(map(len, scores)))
    best = top_mask(torch.cat(scores), count).split([len(each) for each in scores])
    return {name: int(won.count_nonzero()) for name, won in zip(moving, best, strict=True)}
