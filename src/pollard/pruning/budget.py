"""What an allocation may know of a layer, and how many weights a density asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pollard.arguments import require_density
from pollard.errors import InvalidInput, PatternError
from pollard.formats.pattern import Pattern

UNSTRUCTURED = Pattern()


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What an allocation may know of a layer.

    shape: `(out, in)` of a linear weight, `(out, in, height, width)` of a convolution.
    scores: one per grain, `(grains,)`, for allocations that look at them; minus infinity for what may not be kept.
    min_density, max_density: bounds, held in whole grains. Raises InvalidInput without weights, or unless 0 <= min <= max <= 1
    with a whole number of grains between, PatternError where the pattern does not divide the rows.

    >>> Layer((8, 5), Pattern.parse("v4"), min_density=0.25).least
    3
    """

    shape: tuple[int, ...]
    pattern: Pattern = UNSTRUCTURED
    min_density: float = 0.0
    max_density: float = 1.0
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.weights:
            raise InvalidInput(
                f"an empty weight of shape {self.shape}", "at least one number", "Leave the layer out with layers=."
            )
        self.pattern.grid(self.matrix)
        if not 0 <= self.min_density <= self.max_density <= 1:
            raise InvalidInput(
                f"density bounds [{self.min_density}, {self.max_density}]",
                "0 <= min_density <= max_density <= 1",
                "Bounds are fractions kept, per layer.",
            )
        if self._fixed is not None and self.least > self.most:
            raise PatternError(
                f"density bounds [{self.min_density}, {self.max_density}] with pattern {self.pattern}",
                f"bounds that allow {self.pattern.density:g}, what it keeps of every layer",
                "Loosen min_density= and max_density=, or choose another pattern.",
            )
        if self.least > self.most:
            raise InvalidInput(
                f"density bounds [{self.min_density}, {self.max_density}] for {self.grains} grains",
                "bounds with a whole number of grains between them",
                f"Use [{self.most / self.grains:.6g}, {self.least / self.grains:.6g}].",
            )

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns: those of a convolution are channels x taps."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def weights(self) -> int:
        """Weights of the dense layer."""
        return math.prod(self.shape)

    @property
    def grains(self) -> int:
        """Grains of the dense layer."""
        return self.weights // self.pattern.size

    @property
    def least(self) -> int:
        """Grains that `min_density`, or the pattern, demands; 0.1 of 30 is 3, whatever 0.1 is in binary."""
        return max(self._fixed or 0, math.ceil(round(self.min_density * self.grains, 6)))

    @property
    def most(self) -> int:
        """Grains that `max_density`, or the pattern, allows."""
        allowed = math.floor(round(self.max_density * self.grains, 6))
        return allowed if self._fixed is None else min(self._fixed, allowed)

    @property
    def _fixed(self) -> int | None:
        """Grains that the pattern keeps in any case."""
        return self.grains // self.pattern.m * self.pattern.n if self.pattern.m else None


def smallest_grain(layers: Mapping[str, Layer]) -> int:
    """Weights of the smallest grain, of which every other is a multiple."""
    return min(layer.pattern.size for layer in layers.values())


def weights_to_keep(layers: Mapping[str, Layer], density: float) -> int:
    """Weights to keep in all, in whole smallest grains; raises InvalidInput where the layers' bounds forbid it."""
    require_density(density)
    total = sum(layer.weights for layer in layers.values())
    asked, least, most = asked_least_most(layers, density)
    if not least <= asked <= most:
        fixed = sorted({str(layer.pattern) for layer in layers.values() if layer.pattern.m})
        by = f"patterns ({', '.join(fixed)}) and bounds" if fixed else "bounds"
        raise InvalidInput(
            f"density {density}, {asked} of {total} weights, under {by} that allow {least} to {most}",
            f"a density that the {by} of the layers allow",
            f"Ask for a density in [{least / total:.6g}, {most / total:.6g}], or loosen min_density and max_density.",
        )
    return asked


def can_keep(layers: Mapping[str, Layer], density: float) -> bool:
    """Whether the layers' bounds leave a way to keep `density`."""
    asked, least, most = asked_least_most(layers, density)
    return least <= asked <= most


def asked_least_most(layers: Mapping[str, Layer], density: float) -> tuple[int, int, int]:
    """Weights to keep in all, in whole smallest grains, and the least and most that the layers' bounds allow."""
    asked = round(
        density * (sum(layer.weights for layer in layers.values()) // smallest_grain(layers))
    ) * smallest_grain(layers)
    least = sum(layer.least * layer.pattern.size for layer in layers.values())
    most = sum(layer.most * layer.pattern.size for layer in layers.values())
    return asked, least, most
