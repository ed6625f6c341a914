"""What to keep, decided before training: score, allocate, select."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from pollard.errors import InvalidInput, LayerCollapse, PatternError
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.pruning.allocation import ALLOCATIONS, Allocation, Layer, check_density, whole_grains
from pollard.pruning.criteria import CRITERIA, Criterion, own_allocation
from pollard.pruning.gradients import Accumulate, Batches, Mode, Scoring, loss_gradients
from pollard.pruning.masks import top_positions
from pollard.pruning.plan import Plan
from pollard.selection import LayerFilter, linear_layers, listed, per_layer, refuse_tied, select

PatternChoice = str | Pattern | Mapping[str, str | Pattern]
Bound = float | Mapping[str, float] | None
Member = TypeVar("Member")


def prune_at_init(
    model: nn.Module,
    criterion: str | Criterion = "snip",
    density: float = 0.1,
    batch: Batches | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    allocation: str | Allocation | None = None,
    pattern: PatternChoice = "unstructured",
    layers: LayerFilter = None,
    min_density: Bound = None,
    max_density: Bound = None,
    generator: torch.Generator | None = None,
    mode: Mode = "eval",
    accumulate: Accumulate = "signed",
    chunk_size: int | None = None,
    count_biases: bool = False,
) -> Plan:
    """The plan that keeps the `density` of `model`'s linear weights with the highest scores, before any training.

    The model is only read: weights, `.grad`, buffers, training flags and torch's random state stay as they are. Exactly
    `round(density * grains)` grains are kept over all layers; the score of a grain is the sum over its weights.

    criterion: a member of `CRITERIA` (magnitude, random, snip) or a function declared with `needs`.
    batch: for snip, `(inputs, targets)` or an iterable of such pairs; the more samples, the better the mask.
    loss_fn: `(outputs, targets) -> scalar`, a mean over the samples; default cross-entropy.
    allocation: a member of `ALLOCATIONS` (uniform, er, erk, global) or such a function; by default global for a criterion
        whose scores compare across layers, as snip's do, else erk.
    pattern: one for all layers, or a mapping of name patterns, of which the last that matches wins:
    `{"*": "v4", "head": "unstructured"}`; what none matches is unstructured.
    layers: which linear layers, as name patterns or a callable `(name, module) -> bool`. Biases, norms, embeddings and
    subclasses of `nn.Linear` are left alone.
    min_density, max_density: bounds per layer, a number or a mapping of name patterns.
    generator: for criteria that draw numbers; torch's own by default, and then its state moves on.
    mode, accumulate, chunk_size: how the gradient is taken, see `Scoring`.
    count_biases: let `density` be a fraction of weights and biases together, as the authors of SNIP count. Biases are kept
    all the same, so the budget is spent on weights: there, zero biases score zero and go first.

    Raises InvalidInput for a bad argument, a missing batch, non-finite scores, tied weights, or a model that is sparse
    already; PatternError where a pattern does not divide a layer; NothingMatched where a filter selects nothing. Warns
    LayerCollapse where a layer keeps no weight.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    >>> batch = torch.randn(32, 20), torch.randint(5, (32,))
    >>> prune_at_init(model, "snip", density=0.2, batch=batch)
    Plan(2 layers, 50 of 250 weights kept, density 0.2)
    """
    check_density(density)
    rule = _member(criterion, CRITERIA, "criterion")
    _check_needs(rule, batch)
    draw = generator or torch.default_generator
    allocate = _member(allocation or own_allocation(rule), ALLOCATIONS, "allocation")
    scoring = Scoring(loss_fn, mode, accumulate, chunk_size)
    chosen = _prunable(model, layers)
    described = _described(chosen, pattern, min_density, max_density)
    gradients: dict[str, Tensor] = {}
    if batch is not None and "gradient" in rule.needs:
        gradients = loss_gradients(model, chosen, batch, scoring)
    scored = {}
    for name, layer in described.items():
        # Each gradient is let go as soon as its layer is scored.
        given = {"weight": chosen[name].weight.detach(), "gradient": gradients.pop(name, None), "generator": draw}
        scores = rule(**{need: given[need] for need in rule.needs})
        scored[name] = replace(layer, scores=_grain_scores(name, layer, scores))
    budget = min(1.0, density * _with_biases(chosen)) if count_biases else density
    counts = whole_grains(scored, allocate(scored, budget), budget)
    plan = Plan(
        {name: _topology(name, layer, counts[name]) for name, layer in scored.items()},
        criterion=rule.__name__,
        allocation=getattr(allocate, "__name__", repr(allocate)).rstrip("_"),
        asked=density,
    )
    if plan.collapsed:
        warnings.warn(_collapse(plan), LayerCollapse, stacklevel=2)
    return plan


def _member(choice: str | Member, members: Mapping[str, Member], kind: str) -> Member:
    if not isinstance(choice, str):
        return choice
    if choice not in members:
        raise InvalidInput(
            f"{kind} {choice!r}", "one of " + ", ".join(members), "Name a member, or pass a function of your own."
        )
    return members[choice]


def _prunable(model: nn.Module, layers: LayerFilter) -> dict[str, nn.Linear]:
    sparse = [name for name, module in model.named_modules() if isinstance(getattr(module, "topology", None), Topology)]
    if sparse:
        raise InvalidInput(
            f"a model that is sparse already: {listed(sparse)}",
            "a dense model",
            "Make it dense with densify_(model) first.",
        )
    linear = linear_layers(model)
    names = select(linear, layers)
    refuse_tied(model, names)
    return {name: linear[name] for name in names}


def _described(chosen: Mapping[str, nn.Linear], pattern: PatternChoice, least: Bound, most: Bound) -> dict[str, Layer]:
    """The layers as an allocation sees them, not yet scored."""
    texts: dict[str, str | Pattern] = per_layer(pattern, chosen, "unstructured")
    patterns = {name: Pattern.parse(text) for name, text in texts.items()}
    low = per_layer(0.0 if least is None else least, chosen, 0.0)
    high = per_layer(1.0 if most is None else most, chosen, 1.0)
    described = {}
    for name, module in chosen.items():
        try:
            described[name] = Layer((module.out_features, module.in_features), patterns[name], low[name], high[name])
        except InvalidInput as error:
            own = f"Give this layer its own: pattern={{'*': '{patterns[name]}', {name!r}: 'unstructured'}}."
            fix = own if isinstance(error, PatternError) else error.fix
            raise type(error)(f"{error.got} in layer {name!r}", error.expected, fix) from error
    return described


def _check_needs(rule: Criterion, batch: Batches | None) -> None:
    """Raises InvalidInput where `rule` does not declare its needs, or needs a batch that is not there."""
    if not hasattr(rule, "needs"):
        raise InvalidInput(
            f"criterion {rule!r}", "a function declared with @needs(...)", "Declare what it is called with."
        )
    if "gradient" in rule.needs and batch is None:
        raise InvalidInput(
            f"no batch for criterion {rule.__name__!r}", "the batch it needs", "Pass batch=(inputs, targets)."
        )


def _grain_scores(name: str, layer: Layer, scores: Tensor) -> Tensor:
    """The sum of `scores` `(out, in)` over each grain, `(grains,)`; raises InvalidInput unless all are finite."""
    if scores.shape != layer.shape:
        raise InvalidInput(
            f"scores of shape {tuple(scores.shape)} for layer {name!r}",
            f"one score per weight, {layer.shape}",
            "Mend the criterion.",
        )
    grains = layer.pattern.grain_sum(scores.detach()).reshape(-1)
    if not bool(torch.isfinite(grains).all()):
        raise InvalidInput(
            f"{int((~torch.isfinite(grains)).sum())} of {grains.numel()} scores of layer {name!r} that are not finite",
            "finite scores",
            "Look for NaN or overflow in the weights, the scoring batch or the loss.",
        )
    return grains


def _topology(name: str, layer: Layer, count: int) -> Topology:
    assert layer.scores is not None
    positions = top_positions(layer.scores, count, layer=name)
    return Topology.from_positions((layer.shape[0], layer.shape[1]), layer.pattern, positions)


def _with_biases(chosen: Mapping[str, nn.Linear]) -> float:
    """Weights and biases together, per weight."""
    weights = sum(module.weight.numel() for module in chosen.values())
    return 1 + sum(module.out_features for module in chosen.values() if module.bias is not None) / weights


def _collapse(plan: Plan) -> str:
    return (
        f"nothing is kept of {listed(plan.collapsed)} at density {plan.asked}: no signal passes. "
        "Raise the density, pass min_density=, or use allocation='erk'."
    )
