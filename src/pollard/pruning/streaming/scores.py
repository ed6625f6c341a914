"""The scores of a layer's grains, some rows at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import Criterion
from pollard.streamed.source import CACHED, Source, blocks
from pollard.streamed.tensor import StreamedTensor


class Part(NamedTuple):
    """The `scores` `(n,)` of some grains of a layer: all from `first` on, or those at `places`, ascending, counted from there."""

    first: int
    places: Tensor | None
    scores: Tensor

    def positions(self, among: Tensor) -> Tensor:
        """In the layer, of those `among` them, int64 indices."""
        return (among if self.places is None else self.places[among]) + self.first


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

    def __iter__(self) -> Iterator[Part]:
        """Some grains, from the first to the last; what may not be chosen is left out, or has minus infinity."""
        pattern = self.layer.pattern
        width = pattern.grid(self.layer.matrix)[1]
        for first, last in blocks(self.layer.matrix):
            for row, scores in self._pieces(first, last):
                yield Part(row // pattern.rows * width, None, scores.flatten())

    def part(self, first: int, last: int) -> Tensor:
        """The scores of the grains of these rows, `(row groups, width)`: minus infinity for what may not be chosen."""
        return torch.cat([scores for _, scores in self._pieces(first, last)])

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        # What is done place by place is done to what stays in cache.
        pattern = self.layer.pattern
        step = max(1, CACHED // max(1, self.layer.matrix[1] * pattern.rows)) * pattern.rows
        with torch.no_grad():
            given = {need: _rows_of(each, first, last) for need, each in self.given.items()}
            allowed = None if self.allowed is None else self.allowed.rows(first, last)
            for start in range(0, last - first, step):
                piece = slice(start, min(start + step, last - first))
                some = {need: each[piece] if isinstance(each, Tensor) else each for need, each in given.items()}
                scores = self._scored(some, first + start, first + piece.stop)
                if allowed is not None:
                    kept = allowed[piece][:: pattern.rows, :: pattern.columns]
                    scores = scores.masked_fill(~kept, -torch.inf)
                yield first + start, scores

    def _scored(self, given: Mapping[str, Any], first: int, last: int) -> Tensor:
        scores = self.rule(**given)
        if scores.shape != (last - first, self.layer.matrix[1]):
            raise InvalidInput(
                f"scores of shape {tuple(scores.shape)} for {last - first} rows of layer {self.name!r}",
                f"one score per weight, {(last - first, self.layer.matrix[1])}",
                "Declare by_row=True only of a criterion that scores each weight by what is known of its row.",
            )
        grains = self.layer.pattern.grain_sum(scores)
        if not all(map(math.isfinite, map(float, grains.aminmax()))):
            raise InvalidInput(
                f"scores of layer {self.name!r} that are not finite, in rows {first} to {last - 1}",
                "finite scores",
                "Look for NaN or overflow in the weights, the scoring batch or the loss.",
            )
        return -grains if self.invert else grains


@dataclass(frozen=True, slots=True, eq=False)
class Sampled(Scores, ABC):
    """Scores of which some are sooner made than all: those at places, and those that are low."""

    @abstractmethod
    def sample(self, places: int) -> Tensor:
        """Scores of what is still there of so many grains, drawn at random."""

    @abstractmethod
    def up_to(self, score: float) -> Iterator[tuple[Part, int]]:
        """Of some grains at a time, those with no more than that, some others among them, and how many more there are."""


def _rows_of(given: Any, first: int, last: int) -> Any:
    if isinstance(given, StreamedTensor):
        return given.block(first, last)
    return given[first:last] if isinstance(given, Tensor) else given


__all__ = ["Part", "Sampled", "Scores"]
