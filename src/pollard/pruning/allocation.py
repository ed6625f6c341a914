"""From one target density to a density per layer, and from there to whole grains with an exact total.

Every allocation is a pure function `(layers, density) -> density per layer`; `whole_grains` rounds any of them. What it
looks at is declared with it: shapes alone, the scores that decide, or those of a criterion of its own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from pollard.arguments import require_untaken
from pollard.errors import InvalidInput
from pollard.pruning.budget import Layer, asked_least_most, can_keep, smallest_grain, weights_to_keep
from pollard.pruning.masks import top_positions

LAST_DENSITY = 0.3
OUTLIER, SPREAD = 5.0, 0.08
# What an allocation reads, if not the scores of a criterion that it names.
SHAPES, DECIDING = "", "the scores that decide"


Allocation = Callable[[Mapping[str, Layer], float], dict[str, float]]
Made = TypeVar("Made", bound=Allocation)
ALLOCATIONS: dict[str, Allocation] = {}


def allocation(*, reads: str = SHAPES) -> Callable[[Made], Made]:
    """Makes a function a member of `ALLOCATIONS` under `allocation_name` of it; reads: `DECIDING`, or a criterion's name.

    Raises InvalidInput for a name that a function of another module has.
    """

    def join(function: Made) -> Made:
        name = allocation_name(function)
        require_untaken("allocation", name, function, ALLOCATIONS)
        function.reads = reads  # type: ignore[attr-defined]  # a function takes attributes
        ALLOCATIONS[name] = function
        return function

    return join


def allocation_name(function: Allocation) -> str:
    """What an allocation is called: `smart_ratio` is smart-ratio, `global_` is global; with options of its own, the same."""
    plain = getattr(function, "func", function)
    return getattr(plain, "__name__", repr(plain)).rstrip("_").replace("_", "-")


def reads(function: Allocation) -> str:
    """What an allocation looks at: `SHAPES`, `DECIDING`, as one that does not say may, or the criterion whose scores it asks for.

    >>> reads(uniform), reads(owl)
    ('', 'wanda')
    """
    found: str = getattr(getattr(function, "func", function), "reads", DECIDING)
    return found


@allocation()
def uniform(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """The same density in every layer, as far as their bounds allow.

    >>> uniform({"a": Layer((300, 784)), "b": Layer((10, 300), min_density=0.5)}, 0.1)
    {'a': 0.09489795918367347, 'b': 0.5}
    """
    return _fill(layers, dict.fromkeys(layers, 1.0), density)


@allocation()
def er(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """Density proportional to `(in + out) / (in * out)`, at most 1: an Erdos-Renyi graph; kernel sizes do not count.

    Source: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018.

    >>> {name: round(d, 5) for name, d in er({"1": Layer((300, 784)), "2": Layer((10, 300))}, 0.02).items()}
    {'1': 0.01575, '2': 0.35314}
    """
    return _fill(
        layers, {name: sum(layer.shape[:2]) / math.prod(layer.shape[:2]) for name, layer in layers.items()}, density
    )


@allocation()
def erk(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """Density proportional to `(in + out + height + width) / (in * out * height * width)`, at most 1.

    The published algorithm makes the layers that would pass 1 dense, one after the other, and scales the rest; that is the
    one scale at which the clipped densities reach the total, found here directly. Equal to `er` for linear layers.
    Source: Evci et al., Rigging the lottery, 2020, appendix B.

    >>> lenet = {"1": Layer((300, 784)), "2": Layer((100, 300)), "3": Layer((10, 100))}
    >>> {name: round(d, 5) for name, d in erk(lenet, 0.1).items()}
    {'1': 0.07957, '2': 0.23019, '3': 1.0}
    """
    return _fill(layers, {name: sum(layer.shape) / layer.weights for name, layer in layers.items()}, density)


@allocation()
def smart_ratio(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """Density of layer l of L proportional to `(L - l + 1)^2 + (L - l + 1)`, at most 1; 0.3 in the last layer.

    Layers count in their order. Where bounds, or the total, leave no room for 0.3 in the last layer, it is as the others.
    Source: Su et al., Sanity-checking pruning methods: random tickets can win the jackpot, NeurIPS 2020, section 4.

    >>> lenet = {"1": Layer((300, 784)), "2": Layer((100, 300)), "3": Layer((10, 100))}
    >>> {name: round(d, 5) for name, d in smart_ratio(lenet, 0.1).items()}
    {'1': 0.1052, '2': 0.0526, '3': 0.3}
    """
    ranks = dict(zip(layers, range(len(layers), 0, -1), strict=True))
    raw = {name: float(rank * rank + rank) for name, rank in ranks.items()}
    weights_to_keep(layers, density)
    name, last = list(layers.items())[-1]
    share = round(LAST_DENSITY * last.grains)
    if last.least <= share <= last.most:
        whole = share / last.grains
        held = {**layers, name: replace(last, min_density=whole, max_density=whole)}
        if can_keep(held, density):
            return _fill(held, raw, density)
    return _fill(layers, raw, density)


@allocation(reads=DECIDING)
def global_(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """What one top-k over the scores of all layers leaves in each: the highest scores anywhere are kept.

    Bounds are met first: a layer's best `least` grains are in, those beyond its best `most` are out, and the rest compete.
    Between layers of different patterns a grain competes by its score per weight. Raises InvalidInput without scores.

    >>> scores = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([3.0, 2.0])}
    >>> global_({name: Layer((2, 1), scores=s) for name, s in scores.items()}, 0.75)
    {'a': 0.5, 'b': 1.0}
    """
    wanted = weights_to_keep(layers, density) - sum(layer.least * layer.pattern.size for layer in layers.values())
    unit = smallest_grain(layers)
    pools = [_contenders(name, layer, unit) for name, layer in layers.items()]
    kept = top_positions(torch.cat(pools), wanted // unit)
    ends = torch.tensor([pool.numel() for pool in pools], dtype=torch.int64, device="cpu").cumsum(0)
    won = torch.searchsorted(kept, ends).diff(prepend=torch.zeros(1, dtype=torch.int64, device="cpu")).tolist()
    return {
        name: (layer.least * layer.pattern.size + count * unit) / layer.weights
        for (name, layer), count in zip(layers.items(), won, strict=True)
    }


@allocation(reads="wanda")
def owl(
    layers: Mapping[str, Layer],
    density: float,
    *,
    outlier: float = OUTLIER,
    spread: float = SPREAD,
    block: Callable[[str], str] = str,
) -> dict[str, float]:
    """Density `c + 2 spread (D - min D) / (max D - min D)`, D the share of outliers in a layer.

    An outlier is a Wanda score above `outlier` times the mean of its layer; c makes the total what is asked for. Layers that
    `block` gives the same name count as one: in the paper, those of a transformer block. Raises InvalidInput without scores,
    and for an `outlier` or a `spread` below 0.
    Source: Yin et al., Outlier weighed layerwise sparsity (OWL), ICML 2024, section 3, and the authors' code.

    >>> plain, outliers = torch.ones(10), torch.tensor([1.0] * 9 + [90.0])
    >>> found = owl({"a": Layer((10, 1), scores=plain), "b": Layer((10, 1), scores=outliers)}, 0.5)
    >>> {name: round(d, 4) for name, d in found.items()}
    {'a': 0.42, 'b': 0.58}
    """
    if not (outlier >= 0 and spread >= 0):
        raise InvalidInput(
            f"outlier={outlier}, spread={spread}", "numbers of 0 or more", f"Published: {OUTLIER:g} and {SPREAD:g}."
        )
    pools: dict[str, list[Tensor]] = {}
    for name, layer in layers.items():
        scores = _scores(name, layer) / layer.pattern.size
        pools.setdefault(block(name), []).append(scores[scores > -torch.inf])
    shares = {}
    for name, parts in pools.items():
        scores = torch.cat(parts)
        shares[name] = float((scores > outlier * scores.mean(dtype=torch.float64)).sum()) / max(1, scores.numel())
    least, most = min(shares.values()), max(shares.values())
    rise = {name: 2 * spread * (share - least) / ((most - least) or 1.0) for name, share in shares.items()}
    return _fill(layers, dict.fromkeys(layers, 1.0), density, {name: rise[block(name)] for name in layers})


def _scores(name: str, layer: Layer) -> Tensor:
    """The scores of the grains of a layer."""
    if layer.scores is None or layer.scores.shape != (layer.grains,):
        got = "no scores" if layer.scores is None else f"scores of shape {tuple(layer.scores.shape)}"
        raise InvalidInput(
            f"{got} for layer {name!r}", f"one score for each of its {layer.grains} grains", "Score every layer."
        )
    return layer.scores


def _contenders(name: str, layer: Layer, unit: int) -> Tensor:
    """Scores of the grains that bounds leave open, in order, each repeated once per `unit` weights that it costs."""
    scores, cost = _scores(name, layer), layer.pattern.size // unit
    if layer.least or layer.most < layer.grains:
        contends = torch.zeros(layer.grains, dtype=torch.bool, device="cpu")
        contends[top_positions(scores, layer.most, layer=name)] = True
        contends[top_positions(scores, layer.least, layer=name)] = False
        scores = scores.cpu()[contends]
    return scores if cost == 1 else (scores / cost).repeat_interleave(cost)


def whole_grains(layers: Mapping[str, Layer], densities: Mapping[str, float], density: float) -> dict[str, int]:
    """Grains to keep per layer: `densities` in whole grains, bounds held, their sum exactly what `density` asks for.

    The sum is `round(density * grains)` over all layers. Each layer gets its whole grains, then the largest remainders one
    more each, the first of equal ones first. Where layers have grains of different sizes the sum counts the smallest grain;
    what is too little for a larger grain goes to layers of smaller ones. Where those are full they give some back for a
    larger grain more; where they have nothing to give, it is left out.

    >>> whole_grains({"a": Layer((3, 1)), "b": Layer((5, 1)), "c": Layer((2, 1))}, {"a": 0.5, "b": 0.5, "c": 0.5}, 0.5)
    {'a': 2, 'b': 2, 'c': 1}
    """
    exact = {name: densities[name] * layer.grains for name, layer in layers.items()}
    kept = {
        name: min(max(math.floor(round(exact[name], 6)), layer.least), layer.most) for name, layer in layers.items()
    }
    left = weights_to_keep(layers, density) - sum(kept[name] * layer.pattern.size for name, layer in layers.items())
    while left > 0:
        open_to = [n for n, layer in layers.items() if kept[n] < layer.most and layer.pattern.size <= left]
        if not open_to:
            break
        chosen = max(open_to, key=lambda name: exact[name] - kept[name])
        kept[chosen] += 1
        left -= layers[chosen].pattern.size
    return _exchanged(layers, kept, left) if left else kept


def _exchanged(layers: Mapping[str, Layer], kept: dict[str, int], left: int) -> dict[str, int]:
    """`kept` with `left` weights more: one grain that is larger than that, less the difference in smaller ones."""
    for name, layer in sorted(layers.items(), key=lambda item: item[1].pattern.size):
        excess = layer.pattern.size - left
        if excess < 0 or kept[name] == layer.most:
            continue
        traded = {**kept, name: kept[name] + 1}
        for donor, other in layers.items():
            if other.pattern.size < layer.pattern.size:
                given = min(kept[donor] - other.least, excess // other.pattern.size)
                traded[donor] -= given
                excess -= given * other.pattern.size
        if not excess:
            return traded
    return kept


def on_the_way(layers: Mapping[str, Layer], density: float) -> tuple[dict[str, Layer], float]:
    """The layers while `density` is kept on the way to less, N:M patterns `relaxed`, and what they can keep that is closest.

    >>> from pollard.formats.pattern import Pattern
    >>> layers, density = on_the_way({"a": Layer((8, 8), Pattern.parse("1:4"))}, 0.6)
    >>> str(layers["a"].pattern), density
    ('2:4', 0.5)
    """
    found = {name: replace(layer, pattern=layer.pattern.relaxed(density)) for name, layer in layers.items()}
    _, least, most = asked_least_most(found, density)
    total = sum(layer.weights for layer in found.values())
    return found, min(max(density, least / total), most / total)


def _fill(
    layers: Mapping[str, Layer], raw: Mapping[str, float], density: float, offset: Mapping[str, float] | None = None
) -> dict[str, float]:
    """`clip(offset + scale * raw, low, high)` per layer, at the scale where the kept weights are `density` of all."""
    weights_to_keep(layers, density)
    offset = offset or dict.fromkeys(layers, 0.0)
    low = {name: layer.least / layer.grains for name, layer in layers.items()}
    high = {name: layer.most / layer.grains for name, layer in layers.items()}

    def clipped(scale: float) -> dict[str, float]:
        return {name: min(max(offset[name] + scale * raw[name], low[name]), high[name]) for name in layers}

    def weigh(densities: Mapping[str, float]) -> float:
        return sum(densities[name] * layers[name].weights for name in densities)

    wanted = min(max(density * sum(layer.weights for layer in layers.values()), weigh(low)), weigh(high))

    # The kept weights are linear in the scale between the points where a layer leaves its lower or meets its upper bound.
    def meets(name: str, bound: Mapping[str, float]) -> float:
        return (bound[name] - offset[name]) / raw[name]

    bends = sorted(meets(name, bound) for name in layers for bound in (low, high))
    bend = bends[max(bisect_right(bends, wanted, key=lambda scale: weigh(clipped(scale))) - 1, 0)]
    free = {name: raw[name] for name in layers if meets(name, low) <= bend < meets(name, high)}
    if not free:
        return clipped(bend)
    fixed = {name: value for name, value in clipped(bend).items() if name not in free}
    return clipped((wanted - weigh(fixed) - weigh({name: offset[name] for name in free})) / weigh(free))
