"""From one target density to a density per layer, and from there to whole grains with an exact total.

Every allocation is a pure function `(layers, density) -> density per layer`; `whole_grains` rounds any of them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pollard.errors import InvalidInput, PatternError
from pollard.formats.pattern import Pattern
from pollard.pruning.masks import top_positions

UNSTRUCTURED = Pattern()
LAST_DENSITY = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What an allocation may know of a layer.

    shape: `(out, in)` of a linear weight, `(out, in, height, width)` of a convolution.
    scores: one per grain, `(grains,)`, for allocations that compare them; None elsewhere.
    min_density, max_density: bounds, held in whole grains. Raises InvalidInput unless 0 <= min <= max <= 1 with a whole
    number of grains between, PatternError where the pattern does not divide the rows.

    >>> Layer((8, 5), Pattern.parse("v4"), min_density=0.25).least
    3
    """

    shape: tuple[int, ...]
    pattern: Pattern = UNSTRUCTURED
    min_density: float = 0.0
    max_density: float = 1.0
    scores: Tensor | None = None

    def __post_init__(self) -> None:
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


Allocation = Callable[[Mapping[str, Layer], float], dict[str, float]]
ALLOCATIONS: dict[str, Allocation] = {}


def allocation(function: Allocation) -> Allocation:
    """Makes `function` a member of `ALLOCATIONS` under `allocation_name` of it."""
    ALLOCATIONS[allocation_name(function)] = function
    return function


def allocation_name(function: Allocation) -> str:
    """What an allocation is called: `smart_ratio` is smart-ratio, `global_` is global."""
    return getattr(function, "__name__", repr(function)).rstrip("_").replace("_", "-")


@allocation
def uniform(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """The same density in every layer, as far as their bounds allow.

    >>> uniform({"a": Layer((300, 784)), "b": Layer((10, 300), min_density=0.5)}, 0.1)
    {'a': 0.09489795918367347, 'b': 0.5}
    """
    return _fill(layers, dict.fromkeys(layers, 1.0), density)


@allocation
def er(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """Density proportional to `(in + out) / (in * out)`, at most 1: an Erdos-Renyi graph; kernel sizes do not count.

    Source: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018.

    >>> {name: round(d, 5) for name, d in er({"1": Layer((300, 784)), "2": Layer((10, 300))}, 0.02).items()}
    {'1': 0.01575, '2': 0.35314}
    """
    return _fill(
        layers, {name: sum(layer.shape[:2]) / math.prod(layer.shape[:2]) for name, layer in layers.items()}, density
    )


@allocation
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


@allocation
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
    _asked(layers, density)
    name, last = list(layers.items())[-1]
    share = round(LAST_DENSITY * last.grains)
    if last.least <= share <= last.most:
        whole = share / last.grains
        held = {**layers, name: replace(last, min_density=whole, max_density=whole)}
        if _allows(held, density):
            return _fill(held, raw, density)
    return _fill(layers, raw, density)


@allocation
def global_(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """What one top-k over the scores of all layers leaves in each: the highest scores anywhere are kept.

    Bounds are met first: a layer's best `least` grains are in, those beyond its best `most` are out, and the rest compete.
    Between layers of different patterns a grain competes by its score per weight. Raises InvalidInput without scores.

    >>> scores = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([3.0, 2.0])}
    >>> global_({name: Layer((2, 1), scores=s) for name, s in scores.items()}, 0.75)
    {'a': 0.5, 'b': 1.0}
    """
    wanted = _asked(layers, density) - sum(layer.least * layer.pattern.size for layer in layers.values())
    unit = _unit(layers)
    pools = [_contenders(name, layer, unit) for name, layer in layers.items()]
    kept = top_positions(torch.cat(pools), wanted // unit)
    ends = torch.tensor([pool.numel() for pool in pools], dtype=torch.int64, device="cpu").cumsum(0)
    won = torch.searchsorted(kept, ends).diff(prepend=torch.zeros(1, dtype=torch.int64, device="cpu")).tolist()
    return {
        name: (layer.least * layer.pattern.size + count * unit) / layer.weights
        for (name, layer), count in zip(layers.items(), won, strict=True)
    }


def _contenders(name: str, layer: Layer, unit: int) -> Tensor:
    """Scores of the grains that bounds leave open, in order, each repeated once per `unit` weights that it costs."""
    if layer.scores is None or layer.scores.shape != (layer.grains,):
        got = "no scores" if layer.scores is None else f"scores of shape {tuple(layer.scores.shape)}"
        raise InvalidInput(
            f"{got} for layer {name!r}", f"one score for each of its {layer.grains} grains", "Score every layer."
        )
    scores, cost = layer.scores, layer.pattern.size // unit
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
    left = _asked(layers, density) - sum(kept[name] * layer.pattern.size for name, layer in layers.items())
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

    >>> layers, density = on_the_way({"a": Layer((8, 8), Pattern.parse("1:4"))}, 0.6)
    >>> str(layers["a"].pattern), density
    ('2:4', 0.5)
    """
    found = {name: replace(layer, pattern=layer.pattern.relaxed(density)) for name, layer in layers.items()}
    _, least, most = _total(found, density)
    total = sum(layer.weights for layer in found.values())
    return found, min(max(density, least / total), most / total)


def check_density(density: float) -> None:
    """Raises InvalidInput unless `density` is in (0, 1]."""
    if not isinstance(density, int | float) or not 0 < density <= 1:
        raise InvalidInput(
            f"density {density!r}",
            "a density in (0, 1]",
            "Density is the fraction kept: 95 % sparsity is density=0.05.",
        )


def _fill(layers: Mapping[str, Layer], raw: Mapping[str, float], density: float) -> dict[str, float]:
    """`clip(scale * raw, low, high)` per layer, at the scale where the kept weights are `density` of all."""
    _asked(layers, density)
    low = {name: layer.least / layer.grains for name, layer in layers.items()}
    high = {name: layer.most / layer.grains for name, layer in layers.items()}

    def clipped(scale: float) -> dict[str, float]:
        return {name: min(max(scale * raw[name], low[name]), high[name]) for name in layers}

    def weigh(densities: Mapping[str, float]) -> float:
        return sum(densities[name] * layers[name].weights for name in densities)

    wanted = min(max(density * sum(layer.weights for layer in layers.values()), weigh(low)), weigh(high))
    # The kept weights are linear in the scale between the points where a layer leaves its lower or meets its upper bound.
    bends = sorted(bound[name] / raw[name] for name in layers for bound in (low, high))
    bend = bends[max(bisect_right(bends, wanted, key=lambda scale: weigh(clipped(scale))) - 1, 0)]
    free = {name: raw[name] for name in layers if low[name] / raw[name] <= bend < high[name] / raw[name]}
    if not free:
        return clipped(bend)
    fixed = {name: value for name, value in clipped(bend).items() if name not in free}
    return clipped((wanted - weigh(fixed)) / weigh(free))


def _unit(layers: Mapping[str, Layer]) -> int:
    """Weights of the smallest grain, of which every other is a multiple."""
    return min(layer.pattern.size for layer in layers.values())


def _asked(layers: Mapping[str, Layer], density: float) -> int:
    """Weights to keep in all, in whole smallest grains; raises InvalidInput where the layers' bounds forbid it."""
    check_density(density)
    total = sum(layer.weights for layer in layers.values())
    asked, least, most = _total(layers, density)
    if not least <= asked <= most:
        fixed = sorted({str(layer.pattern) for layer in layers.values() if layer.pattern.m})
        by = f"patterns ({', '.join(fixed)}) and bounds" if fixed else "bounds"
        raise InvalidInput(
            f"density {density}, {asked} of {total} weights, under {by} that allow {least} to {most}",
            f"a density that the {by} of the layers allow",
            f"Ask for a density in [{least / total:.6g}, {most / total:.6g}], or loosen min_density and max_density.",
        )
    return asked


def _allows(layers: Mapping[str, Layer], density: float) -> bool:
    """Whether the layers' bounds leave a way to keep `density`."""
    asked, least, most = _total(layers, density)
    return least <= asked <= most


def _total(layers: Mapping[str, Layer], density: float) -> tuple[int, int, int]:
    """Weights to keep in all, in whole smallest grains, and the least and most that the layers' bounds allow."""
    asked = round(density * (sum(layer.weights for layer in layers.values()) // _unit(layers))) * _unit(layers)
    least = sum(layer.least * layer.pattern.size for layer in layers.values())
    most = sum(layer.most * layer.pattern.size for layer in layers.values())
    return asked, least, most
