"""What to keep of weights that are streams of numbers: as over ordinary ones, in memory of what is kept and some rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.heap import hand_back
from pollard.pruning.allocation import ALLOCATIONS, allocation_name, on_the_way, whole_grains
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import CRITERIA
from pollard.pruning.deciding import Decision, Told, kept_positions, topologies_of
from pollard.pruning.network import Network
from pollard.pruning.rounds import Finished
from pollard.pruning.streaming.flow import Bar, Flows, Outlasting, as_flows
from pollard.pruning.streaming.forecast import Forecast, foresee
from pollard.pruning.streaming.masks import Listed, Surviving
from pollard.pruning.streaming.meter import Counted, Meter
from pollard.pruning.streaming.ranking import ROOM, Border, Rehearsed, best_of, border, runs_of
from pollard.pruning.streaming.scores import Scores
from pollard.selection import listed
from pollard.streamed.source import Held, Source
from pollard.streamed.tensor import StreamedTensor

# Grains that each layer keeps, or all of them together where they compete.
Counts = Mapping[str, int] | int


class _Left(NamedTuple):
    """What rounds leave: the masks of what may be kept, and the layers, with no room for more."""

    allowed: Mapping[str, Source]
    layers: Mapping[str, Layer]


class StreamedDecision(Decision[_Left, dict[str, Topology]]):
    """Over weights that come some rows at a time, with the scores of those rows."""

    __slots__ = ()

    def watched(self, densities: list[float]) -> Meter:
        """Told what it will take, and how far it is."""
        return self._metered(self._foreseen(densities))

    def begin(self, begun: Finished | None) -> _Left:
        """All that may be kept."""
        left = _Left(self._given, self._limited)
        if begun is not None:
            left = _Left(self._resumed(begun), self._as_left(left.layers, begun.left["kept"]))
        self._mask(left.allowed)
        return left

    def round(self, left: _Left, density: float) -> tuple[_Left, Told]:
        """What is kept at `density`, by the network that is left."""
        scored, counts = self._scored(*on_the_way(left.layers, density), self._choice(left))
        allowed = self._survivors(scored, counts)
        self._mask(allowed)
        told = _told_of(allowed)
        left = _Left(allowed, self._as_left(left.layers, counts))
        return left, told and (told[0], {"bars": told[1], "kept": counts})

    def see(self, left: _Left, density: float) -> dict[str, Topology]:
        """What is kept: scores are made while it is decided."""
        return self._kept(*self._scored(left.layers, density, self._choice(left)))

    def choose(
        self, left: _Left, density: float, seen: dict[str, Topology]
    ) -> tuple[Mapping[str, Topology], Mapping[str, Tensor]]:
        """As it was seen."""
        del left, density
        return seen, {}

    @property
    def _given(self) -> dict[str, Source]:
        """The masks of an earlier plan."""
        return {name: Listed(topology) for name, topology in self.within.items()}

    @property
    def _limited(self) -> dict[str, Layer]:
        """The layers, with no room for more than they were given."""
        if not self.within:
            return dict(self.layers)
        return {name: _at_most(self.within[name].grains, layer) for name, layer in self.layers.items()}

    def _choice(self, left: _Left) -> Mapping[str, Source]:
        """What a round may choose from."""
        return self._given if self.recover else left.allowed

    def _as_left(self, layers: Mapping[str, Layer], counts: Counts) -> dict[str, Layer]:
        """`layers` after a round, with no room for more than they have, where what was dropped does not come back."""
        if isinstance(counts, int) or self.recover:
            return dict(layers)
        return {name: _at_most(counts[name], layer) for name, layer in layers.items()}

    def _resumed(self, begun: Finished) -> dict[str, Source]:
        """The masks that finished rounds have left."""
        bars, given = begun.left["bars"], self._given
        if not bars:
            return {name: Listed(each) for name, each in topologies_of(begun.tensors, self.layers).items()}
        weights = {
            name: weight.source for name, weight in self.network.weights.items() if isinstance(weight, StreamedTensor)
        }
        return {
            name: Outlasting(
                weights[name],
                tuple(
                    Bar(a, b, *each)
                    for a, b, each in zip(begun.tensors[f"{name}.a"], begun.tensors[f"{name}.b"], ends, strict=True)
                ),
                given.get(name),
            )
            for name, ends in bars.items()
        }

    def require(self) -> None:
        """Raises InvalidInput for what does not go by rows."""
        able = [name for name, each in CRITERIA.items() if each.by_row]
        if not self.rule.by_row or self.rule.solve is not None:
            raise InvalidInput(
                f"criterion {self.rule.name!r} for weights that are streams of numbers, made without pollard.densify_",
                "one that scores a weight by what is known of its row: " + ", ".join(able),
                "Declare a criterion of your own with by_row=True if that is what it does; or give the model memory with "
                "pollard.densify_(model), if it fits.",
            )
        if self.weighing is not None:
            raise InvalidInput(
                f"allocation {allocation_name(self.allocate)!r} over streamed weights",
                f"one that asks for no scores of {self.weighing.name}",
                "Pass allocation='erk', 'uniform' or 'global'.",
            )
        sizes = {layer.pattern.size for layer in self.layers.values()}
        bound = [name for name, layer in self.layers.items() if layer.min_density > 0 or layer.max_density < 1]
        if self._competing and (len(sizes) > 1 or bound or any(layer.pattern.m for layer in self.layers.values())):
            raise InvalidInput(
                f"allocation 'global' over streamed weights with bounds or other grains for {listed(bound or self.layers)}",
                "one pattern for all layers, without min_density and max_density",
                "Pass allocation='erk' or 'uniform', which allow both.",
            )

    def _foreseen(self, densities: list[float]) -> Forecast:
        """What rounds to these densities will take, told to whoever wants to know; raises InvalidInput where it cannot fit."""
        layers = self._limited

        def part(network: Network) -> list[Rehearsed]:
            scored = replace(self, network=network)._scored(layers, densities[0], {})  # noqa: SLF001 - of its own kind
            return [Rehearsed(*each) for each in _pools(*scored)]

        grains = sum(layer.grains for layer in layers.values())
        counts = [round(density * grains) for density in densities]
        forecast = foresee(self.network, counts, self.rule.needs, part)
        if self.forecast is not None:
            self.forecast(forecast)
        forecast.require_room()
        return forecast

    def _metered(self, forecast: Forecast) -> Meter:
        """What counts the passes over the weights from now on."""
        streamed = {name: each for name, each in self.network.weights.items() if isinstance(each, StreamedTensor)}
        # Whoever watches the numbers come shows it already: two bars would write over each other.
        meter = Meter(forecast, shown=not any(each.source.is_watched for each in streamed.values()))
        held: list[Any] = []
        self.network.weights.update(
            {name: each.like(Held(Counted(each.source, meter), held)) for name, each in streamed.items()}
        )
        return meter

    @property
    def _competing(self) -> bool:
        return self.allocate is ALLOCATIONS["global"]

    def _scored(
        self, layers: Mapping[str, Layer], density: float, allowed: Mapping[str, Source]
    ) -> tuple[dict[str, Scores], Counts]:
        """The scores of each layer as the network is now, and how many grains are kept."""
        measured = self.measured()
        hand_back()  # the best are listed beside what is held
        scored = {
            name: as_flows(
                Scores(
                    name,
                    layer,
                    self.rule,
                    self.given(self.rule, name, measured, keep=False),
                    self.invert,
                    allowed.get(name),
                )
            )
            for name, layer in layers.items()
        }
        if self._competing:
            size = next(iter(layers.values())).pattern.size
            return scored, round(density * (sum(layer.weights for layer in layers.values()) // size))
        return scored, whole_grains(layers, self.allocate(layers, density), density)

    def _kept(self, scored: Mapping[str, Scores], counts: Counts) -> dict[str, Topology]:
        topologies: dict[str, Topology] = {}
        self.ties.clear()
        for pools, count in _pools(scored, counts):
            found = runs_of(pools[0]) if pools[0].layer.pattern.m else best_of(pools, count)
            topologies |= found.topologies
            self.ties.update(found.ties)
        return topologies

    def _survivors(self, scored: Mapping[str, Scores], counts: Counts) -> dict[str, Source]:
        """What a round leaves: listed, where it is little enough, or told by the lowest score of it."""
        if (counts if isinstance(counts, int) else sum(counts.values())) <= ROOM:
            return {name: Listed(topology) for name, topology in self._kept(scored, counts).items()}
        found: dict[str, Source] = {}
        for pools, count in _pools(scored, counts):
            end = Border(0.0, 0, 0) if pools[0].layer.pattern.m else border(pools, count)
            found |= {each.name: _left_of(each, end, number) for number, each in enumerate(pools)}
        return found

    def _mask(self, allowed: Mapping[str, Source]) -> None:
        if allowed:
            self.network.masks = {
                name: weight.like(allowed[name])
                if isinstance(weight, StreamedTensor)
                else allowed[name].rows(0, len(weight))
                for name, weight in self.network.weights.items()
            }


def _told_of(allowed: Mapping[str, Source]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What tells these masks: tensors, and of bars their ends; None where they are told by scores of rounds before."""
    if all(isinstance(each, Listed) for each in allowed.values()):
        return kept_positions({name: each.topology for name, each in allowed.items() if isinstance(each, Listed)}), {}
    outlasting = {name: each for name, each in allowed.items() if isinstance(each, Outlasting)}
    if len(outlasting) < len(allowed):
        return None
    tensors = {
        f"{name}.{side}": torch.stack([getattr(bar, side) for bar in each.bars])
        for name, each in outlasting.items()
        for side in ("a", "b")
    }
    return tensors, {name: [[bar.threshold, bar.last] for bar in each.bars] for name, each in outlasting.items()}


def _left_of(scores: Scores, end: Border, number: int) -> Source:
    """What a round leaves of a layer, the `number`-th of those that compete."""
    if isinstance(scores, Flows) and not scores.invert and not isinstance(scores.allowed, Surviving):
        return scores.after(end, number)
    return Surviving(scores, end.threshold, end.last(number))


def _at_most(grains: int, layer: Layer) -> Layer:
    """`layer` with room for no more than so many grains; what N:M patterns keep, they say."""
    return layer if layer.pattern.m else replace(layer, max_density=min(layer.max_density, grains / layer.grains))


def _pools(scored: Mapping[str, Scores], counts: Counts) -> list[tuple[list[Scores], int]]:
    """The layers that compete with each other, and how many grains they keep."""
    if isinstance(counts, int):
        return [(list(scored.values()), counts)]
    return [([each], counts[name]) for name, each in scored.items()]


def is_streamed(network: Network) -> bool:
    """Whether any weight of `network` is a stream of numbers."""
    return any(isinstance(weight, StreamedTensor) for weight in network.weights.values())


__all__ = ["StreamedDecision", "is_streamed"]
