"""The scores of a layer's grains, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.pruning.allocation import Layer
from pollard.pruning.criteria import Criterion
from pollard.streamed.source import Source, blocks
from pollard.streamed.tensor import StreamedTensor


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of the grains of `layer` by `rule`, of what it needs: streamed tensors, ordinary ones of the same shape, a generator.

    allowed: bool, by weight: which may be chosen; None is all.
    """

    name: str
    layer: Layer
    rule: Criterion
    given: Mapping[str, Any]
    invert: bool = False
    allowed: Source | None = None

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """The position of the first grain and the scores `(n,)` of so many rows, from the first to the last."""
        width = self.layer.pattern.grid(self.layer.matrix)[1]
        for first, last in blocks(self.layer.matrix):
            yield first // self.layer.pattern.rows * width, self.part(first, last).flatten()

    def part(self, first: int, last: int) -> Tensor:
        """The scores of the grains of these rows, `(row groups, width)`: minus infinity for what may not be chosen."""
        pattern = self.layer.pattern
        with torch.no_grad():
            given = {need: _rows_of(each, first, last) for need, each in self.given.items()}
            scores = self.rule(**given)
            if scores.shape != (last - first, self.layer.matrix[1]):
                raise InvalidInput(
                    f"scores of shape {tuple(scores.shape)} for {last - first} rows of layer {self.name!r}",
                    f"one score per weight, {(last - first, self.layer.matrix[1])}",
                    "Declare by_row=True only of a criterion that scores each weight by what is known of its row.",
                )
            grains = pattern.grain_sum(scores)
            if not all(map(math.isfinite, map(float, grains.aminmax()))):
                raise InvalidInput(
                    f"scores of layer {self.name!r} that are not finite, in rows {first} to {last - 1}",
                    "finite scores",
                    "Look for NaN or overflow in the weights, the scoring batch or the loss.",
                )
            grains = -grains if self.invert else grains
            if self.allowed is not None:
                kept = self.allowed.rows(first, last)[:: pattern.rows, :: pattern.columns]
                grains = grains.masked_fill(~kept, -torch.inf)
        return grains


def _rows_of(given: Any, first: int, last: int) -> Any:
    if isinstance(given, StreamedTensor):
        return given.block(first, last)
    return given[first:last] if isinstance(given, Tensor) else given


__all__ = ["Scores"]
