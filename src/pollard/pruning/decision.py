"""What to keep: measure, score, allocate, select, once or in rounds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pollard.arguments import require_density, require_one_of
from pollard.composites import axes_of, composed, matrices, refuse_dense
from pollard.coverage import Coverage
from pollard.errors import InvalidInput, LayerCollapse, LeftDense, PatternError, ScoresTie
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern, PatternChoice, density_of
from pollard.formats.topology import Topology
from pollard.pruning.allocation import (
    ALLOCATIONS,
    Allocation,
    on_the_way,
    whole_grains,
)
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import CRITERIA, Criterion, own_allocation
from pollard.pruning.deciding import Decision, Measured, Told, kept_positions, topologies_of
from pollard.pruning.masks import best_grains
from pollard.pruning.network import Network
from pollard.pruning.opened import opened
from pollard.pruning.plan import Plan, collapse_message
from pollard.pruning.rounds import Finished, round_densities
from pollard.pruning.scoring import Batches, Rounds, Scoring
from pollard.pruning.streaming import Forecast, StreamedDecision, is_streamed
from pollard.pruning.ties import comparable, ranked, tie_message, ties_at_zero, unreached_message
from pollard.selection import (
    LayerFilter,
    listed,
    per_layer,
    refuse_meta,
    refuse_tied,
    refuse_unready,
    require_module,
    require_prunable,
    select,
)

Bound = float | Mapping[str, float] | None
Member = TypeVar("Member")
QUARTER = 0.25
DENSITY = 0.1


def prune(
    model: nn.Module,
    criterion: str | Criterion = "snip",
    density: float | None = None,
    batch: Batches | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    allocation: str | Allocation | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    min_density: Bound = None,
    max_density: Bound = None,
    generator: torch.Generator | None = None,
    scoring: Scoring | None = None,
    rounds: int | Rounds | None = None,
    invert: bool = False,
    within: Mapping[str, Topology] | None = None,
    input_shape: tuple[int, ...] | None = None,
    count_biases: bool = False,
    forecast: Callable[[Forecast], None] | None = None,
) -> Plan:
    """The plan that keeps the `density` of `model`'s linear weights with the highest scores, at whatever point of training.

    The model is only read: weights, `.grad`, buffers, training flags and torch's random state stay as they are. Exactly
    `round(density * grains)` grains are kept over all layers; the score of a grain is the sum over its weights.

    criterion: a member of `CRITERIA` or a function declared with `criterion`.
    density: the fraction to keep, in (0, 1]; by default what an N:M pattern keeps, else 0.1.
    batch: `(inputs, targets)`, or a dict that the model takes by name and gives a `loss` for, as those of transformers do of
        one with labels; or an iterable of such, for criteria that look at data. The more samples, the better.
    loss_fn: `(outputs, targets) -> scalar`, a mean over the samples; default cross-entropy, or the model's own loss.
    allocation: a member of `ALLOCATIONS` (uniform, er, erk, global, owl, ...) or such a function; by default global for a
        criterion whose scores compare across layers, as snip's do; uniform for wanda, ria, sparsegpt, alps and movement, as
        published; else erk.
    pattern: one for all layers (unstructured, `v4`, `b16x2`, `2:4`), or a mapping of name patterns, of which the last that
    matches wins: `{"*": "v4", "head": "unstructured"}`; what none matches is unstructured.
    layers: which linear layers, as name patterns or a callable `(name, module) -> bool`. Biases, norms, embeddings and
    subclasses of `nn.Linear` with methods of their own are left alone.
    min_density, max_density: bounds per layer, a number or a mapping of name patterns.
    generator: for criteria that draw numbers; torch's own by default, and then its state moves on.
    scoring: how the network is called and measured, as `Scoring(chunk_size=64, mode="train")`.
    rounds: score so many times, each time the network that the round before has left; see `Rounds`. None is the criterion's own.
    invert: keep the lowest scores; an ablation.
    within: an earlier plan of the same layers, to prune further: what it dropped never comes back. Layers that are sparse
    already are pruned within what they keep, and `sparsify_` then makes them smaller; layers= None means these, where there are any.
    input_shape: of one sample, where a criterion needs that and no data.
    count_biases: let `density` be a fraction of weights and biases together, as the authors of SNIP count. Biases are kept
    all the same, so the budget is spent on weights: there, zero biases score zero and go first.
    forecast: is told what the decision will take, before it begins, where weights have no memory: `forecast=print`.

    Raises InvalidInput for a bad argument, a missing batch, non-finite scores, tied weights, sparse and dense layers in one
    call, or weights that are lazy, parametrized or made by a hook; PatternError where a pattern does not divide a layer;
    NothingMatched where a filter selects nothing, or there is nothing to prune. Warns LayerCollapse where a layer keeps no
    weight, ScoresTie where the cut falls among scores of 0 or no gradient reaches a layer, LeftDense
    where layers= is left out and less than a quarter of the model's parameters is in the layers that are pruned.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    >>> batch = torch.randn(32, 20), torch.randint(5, (32,))
    >>> prune(model, "snip", density=0.2, batch=batch)
    Plan(2 layers, 50 of 250 weights kept, density 0.2)
    """
    density = density_of(pattern) or DENSITY if density is None else density
    require_density(density)
    require_module(model)
    rule = _declared(_member(criterion, CRITERIA, "criterion"))
    view, names, pattern, within = opened(model, layers, pattern, within)
    chosen = _prunable(view, names)
    budget = min(1.0, density * _with_biases(chosen)) if count_biases else density
    scoring = _filled_in(scoring or Scoring(), rule, loss_fn)
    rounds = rounds if isinstance(rounds, Rounds) else Rounds(rounds)
    described = _described(composed(view, chosen), chosen, pattern, min_density, max_density)
    network = Network(view, chosen, batch, scoring, generator=generator, input_shape=input_shape)
    decision = (StreamedDecision if is_streamed(network) else _DenseDecision)(
        rule,
        _member(allocation or own_allocation(rule), ALLOCATIONS, "allocation"),
        network,
        described,
        _fitting(within, described),
        recover=rule.recover if rounds.recover is None else rounds.recover,
        invert=invert,
        resume=None if rounds.resume is None else Path(rounds.resume),
        forecast=forecast,
    )
    count, start = rule.rounds if rounds.count is None else rounds.count, Plan(within).density if within else 1.0
    plan = decision.plan(round_densities(budget, count, rounds.schedule, start), density)
    plan = replace(plan, coverage=Coverage.of(model, plan))
    _warn(decision, plan)
    if layers is None and plan.coverage is not None and plan.coverage.share < QUARTER:
        warnings.warn(_mostly_dense(plan.coverage), LeftDense, stacklevel=2)
    return plan


prune_at_init = prune


class _Left(NamedTuple):
    """What rounds keep, and its density: grains of different sizes may leave less than was asked for, and no later round keeps more."""

    topologies: Mapping[str, Topology]
    reached: float


class _DenseDecision(Decision[_Left, Measured]):
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


def _member(choice: str | Member, members: Mapping[str, Member], kind: str) -> Member:
    if not isinstance(choice, str):
        return choice
    require_one_of(kind, choice, members, "Name a member, or pass a function of your own.")
    return members[choice]


def _prunable(model: nn.Module, layers: LayerFilter) -> dict[str, nn.Linear]:
    linear = matrices(model) or require_prunable(model)
    refuse_dense(model, layers)
    names = select(linear, layers)
    apart = composed(model, names)
    refuse_unready(apart, names)
    refuse_tied(apart, names)
    return {name: linear[name] for name in names}


def _described(
    model: nn.Module, chosen: Iterable[str], pattern: PatternChoice, least: Bound, most: Bound
) -> dict[str, Layer]:
    """The layers as an allocation sees them, not yet scored."""
    texts: dict[str, str | Pattern] = per_layer(pattern, chosen, "unstructured")
    patterns = {name: Pattern.parse(text) for name, text in texts.items()}
    low = per_layer(0.0 if least is None else least, chosen, 0.0)
    high = per_layer(1.0 if most is None else most, chosen, 1.0)
    described = {}
    for name in chosen:
        try:
            described[name] = Layer(axes_of(model, name), patterns[name], low[name], high[name])
        except InvalidInput as error:
            own = f"Give this layer its own: pattern={{'*': '{patterns[name]}', {name!r}: 'unstructured'}}."
            fix = own if isinstance(error, PatternError) else error.fix
            raise type(error)(f"{error.got} in layer {name!r}", error.expected, fix) from error
    return described


def _fitting(within: Mapping[str, Topology], layers: Mapping[str, Layer]) -> Mapping[str, Topology]:
    """`within`, once it is sure that it is of these layers."""
    if not isinstance(within, Mapping):
        raise InvalidInput(f"within={within!r}", "a plan", "Pass what prune() returned for this model.")
    found = {name: (topology.shape, topology.pattern) for name, topology in within.items()}
    expected = {name: (layer.matrix, layer.pattern) for name, layer in layers.items()}
    if found and found != expected:
        raise InvalidInput(
            f"within= of layers {listed(within)}",
            f"a plan of {listed(layers)}, of their shapes and patterns",
            "Pass the plan that this model was pruned by.",
        )
    return within


def _filled_in(scoring: Scoring, rule: Criterion, loss_fn: Callable[[Any, Any], Tensor] | None) -> Scoring:
    """`scoring` with the criterion's own choices for what it leaves open."""
    return replace(
        scoring,
        loss_fn=scoring.loss_fn if loss_fn is None else loss_fn,
        mode=rule.mode if scoring.mode is None else scoring.mode,
        temperature=rule.temperature if scoring.temperature is None else scoring.temperature,
    )


def _declared(rule: Criterion) -> Criterion:
    """`rule` itself; raises InvalidInput where it does not declare its needs."""
    if not hasattr(rule, "needs"):
        raise InvalidInput(
            f"criterion {rule!r}", "a function declared with @criterion(needs=...)", "Declare what it is called with."
        )
    return rule


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


def _with_biases(chosen: Mapping[str, nn.Linear]) -> float:
    """Weights and biases together, per weight."""
    weights = sum(module.weight.numel() for module in chosen.values())
    return 1 + sum(module.out_features for module in chosen.values() if module.bias is not None) / weights


def _warn(decision: Decision[Any, Any], plan: Plan) -> None:
    """Tells the caller of `prune` what is the matter with `plan`."""
    if decision.network.unreached:
        warnings.warn(unreached_message(decision.network.unreached), ScoresTie, stacklevel=3)
    if decision.ties and not decision.invert:
        warnings.warn(tie_message(decision.ties, decision.network.weights), ScoresTie, stacklevel=3)
    if plan.collapsed:
        warnings.warn(collapse_message(plan), LayerCollapse, stacklevel=3)


def _mostly_dense(coverage: Coverage) -> str:
    return (
        f"{coverage}. The density {coverage.density:.4g} is of the layers that are pruned; of the whole model "
        f"{coverage.model_density:.4g} is kept; layers= says that this is meant."
    )
