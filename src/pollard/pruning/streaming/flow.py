"""Rounds of flow through a network: scores are |w| a_i b_j, so what many rounds leave is told by two vectors of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from pollard.kernels.indices.outlasting import Found, between, outlasting
from pollard.pruning.streaming.masks import Listed
from pollard.pruning.streaming.ranking import Border
from pollard.pruning.streaming.scores import Part, Sampled, Scores
from pollard.streamed.products import Scaled
from pollard.streamed.source import Mapped, Masked, Places, Source, cached_rows
from pollard.streamed.tensor import StreamedTensor

DOUBLE = 2.0**-48  # of products of float64 numbers, each rounded, beside each other
TAME = 1e15  # a factor within this and one by it keeps all products in float32's range


class Bar(NamedTuple):
    """What a round asks: `|w| a_i b_j` above `threshold`, or equal to it at or before the position `last`; float64."""

    a: Tensor
    b: Tensor
    threshold: float
    last: int

    def covers(self, earlier: Bar) -> bool:
        """Whether what passes this bar has passed the `earlier` one, as sure as rounding allows."""
        least = 1.0
        for own, its in ((self.a, earlier.a), (self.b, earlier.b)):
            open_ = own > 0
            least *= float((its[open_] / own[open_]).min()) if bool(open_.any()) else 1.0
        return self.threshold > 0 and least * self.threshold > earlier.threshold * (1 + DOUBLE)

    def passed(self, magnitudes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Which of the weights at these places, whose magnitudes are in float64, pass."""
        scores = magnitudes * (self.a[rows] * self.b[columns])
        return (scores > self.threshold) | ((scores == self.threshold) & (rows * len(self.b) + columns <= self.last))

    def in_single(self) -> tuple[Tensor, Tensor] | None:
        """Vectors in float32 by which a magnitude is above 1 where it passes; None where they would leave float32's range."""
        most = float(self.b.max())
        if not (most > 0 and self.threshold > 0):
            return None
        a, b = self.a * (most / self.threshold), self.b / most
        tame = (bool(((each == 0) | ((each > 1 / TAME) & (each < TAME))).all()) for each in (a, b))
        return (a.float(), b.float()) if all(tame) else None


class Outlasting(Source):
    """The mask of the weights that pass every one of `bars`, and lie in `within`, another mask.

    Never stored: what is held is two vectors a round, and only those of rounds that drop something which no later one drops.
    Where float32 is too coarse to tell, float64 does.
    """

    dtype, is_sparse = torch.bool, True

    def __init__(self, weights: Source, bars: tuple[Bar, ...] = (), within: Source | None = None) -> None:
        self.weights, self.bars, self.within, self.shape = weights, bars, within, weights.shape
        single = [bar.in_single() for bar in bars]
        self.is_tame = None not in single
        tame = [each for each in single if each is not None]
        self._a, self._b = (
            torch.stack([each[side] for each in tame])
            if tame
            else torch.empty(0, size, dtype=torch.float32, device="cpu")
            for side, size in enumerate(self.shape)
        )

    def with_bar(self, bar: Bar) -> Outlasting:
        """The mask after one round more."""
        return Outlasting(self.weights, (*(each for each in self.bars if not bar.covers(each)), bar), self.within)

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows: True where kept."""
        places, made = (
            self.places(first, last),
            torch.zeros((last - first, self.shape[1]), dtype=torch.bool, device="cpu"),
        )
        made[places.rows(), places.columns] = True
        return made

    def places(self, first: int, last: int) -> Places:
        """What is kept of those rows."""
        return self._kept(first, last)[0]

    def picked(self, source: Source, first: int, last: int) -> tuple[Places, Tensor]:
        """What is kept of those rows, and what `source` has there."""
        places, values = self._kept(first, last)
        return places, values if source is self.weights else places.of(source.rows(first, last))

    def keeps(self, magnitudes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Which of the weights at these places, whose magnitudes are in float64, are kept."""
        kept = torch.ones_like(rows, dtype=torch.bool) if self.within is None else self.within.at(rows, columns)
        for bar in self.bars:
            kept &= bar.passed(magnitudes, rows, columns)
        return kept

    def below(self, bar: Bar, first: int, last: int) -> tuple[Places, Tensor, int]:
        """What is kept of those rows and does not pass `bar` for sure, with its numbers; and how many others are kept."""
        upper = bar.in_single() if self.is_tame and self.within is None else None
        if upper is None:
            return *self._kept(first, last), 0
        by = [
            torch.cat([own, top[None]])
            for own, top in zip((self._a[:, first:last], self._b), (upper[0][first:last], upper[1]), strict=True)
        ]
        found, passed = between(self._single(first, last), *by)
        return *self._judged(found, first), passed

    def _kept(self, first: int, last: int) -> tuple[Places, Tensor]:
        found = outlasting(self._single(first, last), self._a[:, first:last].contiguous(), self._b)
        return self._judged(found, first)

    def _judged(self, found: Found, first: int) -> tuple[Places, Tensor]:
        """What of these is kept, where it takes float64 to say so of some."""
        columns = found.columns.long()
        asked = (columns < (0 if self.is_tame else self.shape[1])).nonzero().view(-1)
        columns[asked] = torch.where(columns[asked] < 0, ~columns[asked], columns[asked])
        places, values = Places(found.counts, columns), found.values
        if self.weights.dtype == torch.float64:  # float32 has rounded them
            values = places.of(self.weights.rows(first, first + len(found.counts)))
        if self.within is None and not len(asked):
            return places, values
        kept, rows = torch.ones_like(columns, dtype=torch.bool), places.rows()
        if self.within is not None:
            kept &= self.within.rows(first, first + len(places.counts))[rows, columns]
        for bar in self.bars if len(asked) else ():
            kept[asked] &= bar.passed(values[asked].double().abs(), rows[asked] + first, columns[asked])
        counts = rows[kept].bincount(minlength=len(places.counts))
        return Places(counts, places.columns[kept]), values[kept]

    def _single(self, first: int, last: int) -> Tensor:
        return self.weights.rows(first, last).float().contiguous()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Flows(Scores):
    """Scores `|w| a_i b_j` of single weights: made of those that are still there, and of no others."""

    weights: Source
    a: Tensor
    b: Tensor

    def __iter__(self) -> Iterator[Part]:
        """Some weights of a layer that are still there, from the first to the last."""
        left = self.left()
        for first, last in cached_rows(self.layer.matrix):
            yield self._part(first, *left.picked(self.weights, first, last))

    def left(self) -> Listed | Outlasting:
        """The mask of what is still there."""
        if isinstance(self.allowed, Listed | Outlasting):
            return self.allowed
        return Outlasting(self.weights, within=self.allowed)

    def quickest(self) -> Flows:
        """These scores, some of them sooner made than all where that can be."""
        left = self.left()
        if self.invert or not isinstance(left, Outlasting):
            return self
        return SampledFlows(**{each.name: getattr(self, each.name) for each in fields(self)}, still=left)

    def after(self, end: Border, number: int) -> Outlasting:
        """The mask of what a round leaves that ends there, of the `number`-th of the layers that compete."""
        left, bar = self.left(), Bar(self.a, self.b, end.threshold, end.last(number))
        return left.with_bar(bar) if isinstance(left, Outlasting) else Outlasting(self.weights, (bar,), left)

    def _part(self, first: int, places: Places, values: Tensor) -> Part:
        rows, width = places.rows(), self.layer.matrix[1]
        scores = values.double().abs() * (self.a[first:][rows] * self.b[places.columns])
        return Part(first * width, rows.mul_(width).add_(places.columns), -scores if self.invert else scores)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SampledFlows(Flows, Sampled):
    """Those of what bars leave, `still`: what passes one more for sure need not be listed."""

    still: Outlasting

    def sample(self, places: int) -> Tensor:
        """Scores of what is still there of so many weights, drawn at random."""
        draw = torch.Generator("cpu").manual_seed(0)
        # In the order of rows, as sources that are read are.
        rows, columns = (
            torch.randint(size, (places,), generator=draw, dtype=torch.int64, device="cpu")
            for size in self.layer.matrix
        )
        rows = rows.sort().values
        magnitudes = self.weights.at(rows, columns).double().abs()
        kept = self.still.keeps(magnitudes, rows, columns)
        return magnitudes[kept] * (self.a[rows[kept]] * self.b[columns[kept]])

    def up_to(self, score: float) -> Iterator[tuple[Part, int]]:
        """Of some weights at a time that are still there, those with no more than that, some others among them, and how many more."""
        bar = Bar(self.a, self.b, score, -1)
        for first, last in cached_rows(self.layer.matrix):
            places, values, above = self.still.below(bar, first, last)
            yield self._part(first, places, values), above


def as_flows(scores: Scores) -> Scores:
    """`scores`, made of what is left alone where they are |w| a_i b_j of single weights; else as they are."""
    pattern = scores.layer.pattern
    if scores.rule.needs != ("synaptic_flow",) or pattern.size > 1 or pattern.m:
        return scores
    flow = scores.given["synaptic_flow"]
    source = flow.source if isinstance(flow, StreamedTensor) else None
    # A criterion that gives back what it is given scores nothing but the flow.
    if not isinstance(source, Scaled) or scores.rule(flow) is not flow:
        return scores
    weights, vectors = _weights(source.source), source.outer.vectors
    if weights is None or vectors is None:
        return scores
    own = (scores.name, scores.layer, scores.rule, scores.given, scores.invert, scores.allowed)
    return Flows(*own, weights=weights, a=vectors[0], b=vectors[1]).quickest()


def _weights(source: Source) -> Source | None:
    """The weights, where `source` is magnitudes of what a mask leaves of them, in another precision."""
    while isinstance(source, Mapped) and source.function in {Tensor.to, torch.ops.aten.abs.default}:
        source = source.arguments[0]
    source = source.source if isinstance(source, Masked) else source
    return None if isinstance(source, Mapped) else source


__all__ = ["Bar", "Flows", "Outlasting", "as_flows"]
