"""What to keep: `prune`, from what its caller asks to a decision, and from that to a plan and its warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pollard.arguments import require_density, require_one_of
from pollard.composites import axes_of, composed, matrices, refuse_dense
from pollard.coverage import Coverage
from pollard.errors import InvalidInput, LayerCollapse, LeftDense, PatternError, ScoresTie
from pollard.formats.pattern import Pattern, PatternChoice, density_of
from pollard.formats.topology import Topology
from pollard.pruning.allocation import ALLOCATIONS, Allocation
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import CRITERIA, Criterion, own_allocation
from pollard.pruning.deciding import Decision
from pollard.pruning.dense_decision import DenseDecision
from pollard.pruning.network import Network
from pollard.pruning.opened import opened
from pollard.pruning.plan import Plan, collapse_message
from pollard.pruning.rounds import round_densities
from pollard.pruning.scoring import Batches, Rounds, Scoring
from pollard.pruning.streaming import Forecast, StreamedDecision, is_streamed
from pollard.pruning.ties import tie_message, unreached_message
from pollard.selection import (
    LayerFilter,
    listed,
    per_layer,
    refuse_tied,
    refuse_unready,
    require_module,
    require_prunable,
    select,
)

Bound = float | Mapping[str, float] | None
Member = TypeVar("Member")
LEAST_SHARE = 0.25  # of a model in the layers that are pruned; where it is less, most of it stays dense
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
    decision = (StreamedDecision if is_streamed(network) else DenseDecision)(
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
    if layers is None and plan.coverage is not None and plan.coverage.share < LEAST_SHARE:
        warnings.warn(_mostly_dense(plan.coverage), LeftDense, stacklevel=2)
    return plan


prune_at_init = prune


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
