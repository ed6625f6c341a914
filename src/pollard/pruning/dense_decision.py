"""Decisions over weights that are there: scores of all their grains at once, in any number of rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from pollard.pruning.allocation import Allocation, on_the_way, whole_grains
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import Criterion
from pollard.pruning.deciding import Decision, Measured, Told, kept_positions, topologies_of
from pollard.pruning.masks import best_grains
from pollard.pruning.plan import Plan
from pollard.pruning.rounds import Finished
from pollard.pruning.ties import comparable, ranked, ties_at_zero
from pollard.selection import refuse_meta


class _Left(NamedTuple):
    """What rounds keep, and its density: grains of different sizes may leave less than was asked for, and no later round keeps more."""

    topologies: Mapping[str, Topology]
    reached: float


class DenseDecision(Decision[_Left, Measured]):
    """Over weights that are there, with the scores of all their grains."""

    __slots__ = ()

    def require(self) -> None:
        """Weights that hold numbers, where more than their shapes is looked at."""
        if set(self.rule.needs) != {"weight", "generator"}:
            refuse_meta({name: self.network.model.get_submodule(name) for name in self.network.names})

    def begin(self, begun: Finished | None) -> _Left:
        """All that may be kept."""
        topologies = dict(self.within) if begun is None else topologies_of(begun.tensors, self.layers)
        self._mask(topologies)
        return _Left(topologies, 1.0 if begun is None else Plan(topologies).density)

    def round(self, left: _Left, density: float) -> tuple[_Left, Told]:
        """What is kept at `density`, by the network that is left."""
        measured = self.measured()
        share = self._allocating(measured)
        scored = self._limited(self._score(self.rule, measured, invert=self.invert), left.topologies)
        topologies = self._select(*on_the_way(scored, min(density, left.reached)), share)
        self._mask(topologies)
        return _Left(topologies, Plan(topologies).density), (kept_positions(topologies), {})

    def see(self, left: _Left, density: float) -> Measured:
        """The measurements."""
        del left, density
        return self.measured()

    def choose(
        self, left: _Left, density: float, seen: Measured
    ) -> tuple[Mapping[str, Topology], Mapping[str, Tensor]]:
        """By the scores, or as the criterion solves it."""
        last, share = min(density, left.reached), self._allocating(seen)
        scored = self._score(self.rule, seen, keep=self.rule.solve is not None, invert=self.invert)
        scored = self._limited(scored, left.topologies)
        if self.rule.solve is None:
            return self._select(scored, last, share), {}
        return self._solve(self.rule.solve, scored, self._counts(scored, last, share), seen)

    def _allocating(self, measured: Measured) -> Allocation:
        """How the budget is shared out now: by what the allocation's own criterion scores, where it names one."""
        if self.weighing is None:
            return self.allocate
        weighed = self._score(self.weighing, measured, keep=True, invert=False)

        def share(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
            return self.allocate({name: _scored_as(layer, weighed[name]) for name, layer in layers.items()}, density)

        return share

    def _score(self, rule: Criterion, measured: Measured, *, invert: bool, keep: bool = False) -> dict[str, Layer]:
        """The layers with the scores that `rule` gives their grains."""
        scored = {}
        for name, layer in self.layers.items():
            scores = _grain_scores(name, layer, rule(**self.given(rule, name, measured, keep=keep)))
            scored[name] = replace(layer, scores=-scores if invert else scores)
        return scored

    def _mask(self, topologies: Mapping[str, Topology]) -> None:
        if topologies:
            self.network.masks = {
                name: topology.mask().to(self.network.device) for name, topology in topologies.items()
            }

    def _limited(self, scored: dict[str, Layer], before: Mapping[str, Topology]) -> dict[str, Layer]:
        """`scored`, of which only what was kept `before` can be chosen; what may recover, only of what was given."""
        kept = self.within if self.recover else before
        return {name: _within(layer, kept[name]) for name, layer in scored.items()} if kept else scored

    def _counts(self, scored: dict[str, Layer], density: float, share: Allocation) -> dict[str, int]:
        """How many grains each layer keeps at `density`."""
        return whole_grains(scored, share(comparable(scored), density), density)

    def _select(self, scored: dict[str, Layer], density: float, share: Allocation) -> dict[str, Topology]:
        """The topology of each layer at `density`."""
        counts = self._counts(scored, density, share)
        self.ties.clear()
        self.ties.update(ties_at_zero(scored, counts))
        return {name: _topology(name, layer, counts[name]) for name, layer in ranked(scored).items()}

    def _solve(
        self, solve: Any, scored: dict[str, Layer], counts: dict[str, int], measured: Measured
    ) -> tuple[dict[str, Topology], dict[str, Tensor]]:
        """Topologies and new values, by the criterion's own solution of each layer."""
        if self.invert:
            raise InvalidInput(
                f"invert=True with criterion {self.rule.name!r}, which chooses while it changes weights",
                "a criterion that only scores",
                "Leave invert= out.",
            )
        self.ties.update(ties_at_zero(scored, counts))
        topologies, updated = {}, {}
        for name, layer in scored.items():
            assert layer.scores is not None
            given = {need: _on_host(each) for need, each in self.given(self.rule, name, measured, keep=False).items()}
            allowed = (layer.scores > -torch.inf).view(layer.pattern.grid(layer.matrix))
            weight = given.pop("weight", self.network.weights[name].cpu())
            weight = torch.where(layer.pattern.spread(allowed), weight, 0.0)
            positions, new = solve(weight, counts[name], layer.pattern, allowed, **given)
            topologies[name] = Topology.from_positions(layer.matrix, layer.pattern, positions)
            updated[name] = SparseMatrix.from_dense(new.to(weight.dtype), topologies[name]).values
        return topologies, updated


def _on_host(given: Any) -> Any:
    return given.cpu() if isinstance(given, Tensor) else given


def _within(layer: Layer, kept: Topology) -> Layer:
    """`layer`, with what is not `kept` ranked last, and no room for it."""
    assert layer.scores is not None
    scores = torch.full_like(layer.scores, -torch.inf)
    positions = kept.positions()
    scores[positions] = layer.scores[positions]
    return replace(layer, scores=scores, max_density=min(layer.max_density, positions.numel() / layer.grains))


def _scored_as(layer: Layer, other: Layer) -> Layer:
    """`layer` with the scores of `other`, but for what may not be kept."""
    assert layer.scores is not None
    assert other.scores is not None
    return replace(layer, scores=other.scores.masked_fill(layer.scores == -torch.inf, -torch.inf))


def _grain_scores(name: str, layer: Layer, scores: Tensor) -> Tensor:
    """The sum of `scores` `(out, in)` over each grain, `(grains,)`; raises InvalidInput unless all are finite."""
    if scores.shape != layer.matrix:
        raise InvalidInput(
            f"scores of shape {tuple(scores.shape)} for layer {name!r}",
            f"one score per weight, {layer.matrix}",
            "Mend the criterion.",
        )
    # Topologies are chosen on the host, wherever the model is.
    grains = layer.pattern.grain_sum(scores.detach()).reshape(-1).cpu()
    if not bool(torch.isfinite(grains).all()):
        raise InvalidInput(
            f"{int((~torch.isfinite(grains)).sum())} of {grains.numel()} scores of layer {name!r} that are not finite",
            "finite scores",
            "Look for NaN or overflow in the weights, the scoring batch or the loss.",
        )
    return grains


def _topology(name: str, layer: Layer, count: int) -> Topology:
    assert layer.scores is not None
    positions = best_grains(layer.scores, count, layer.pattern, layer=name)
    return Topology.from_positions(layer.matrix, layer.pattern, positions)


__all__ = ["DenseDecision"]
