"""Scores of zero: where the cut falls among them they decide nothing, which is told; where there are no others, it is drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from zlib import crc32

import torch
from torch import Tensor

from pollard.pruning.budget import Layer
from pollard.selection import listed

# Kept among scores of zero, and how many of those there are, by layer.
Ties = Mapping[str, tuple[int, int]]


def ranked(scored: Mapping[str, Layer]) -> dict[str, Layer]:
    """The layers, of which one whose scores are all zero is given random ones, the same each time: nothing ranks its grains.

    By index, the first rows would be kept whole and all others lost.

    >>> layers = {"a": Layer((2, 2), scores=torch.zeros(4)), "b": Layer((1, 2), scores=torch.tensor([0.0, 1.0]))}
    >>> {name: len(layer.scores.unique()) for name, layer in ranked(layers).items()}
    {'a': 4, 'b': 2}
    """
    return {name: _drawn(name, layer) if _all_zero(layer) else layer for name, layer in scored.items()}


def comparable(scored: Mapping[str, Layer]) -> dict[str, Layer]:
    """The layers as an allocation is to compare them: `ranked` where no score of any is other than zero."""
    return ranked(scored) if all(map(_all_zero, scored.values())) else dict(scored)


def ties_at_zero(scored: Mapping[str, Layer], counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Where the cut falls among scores of zero: how many of them are kept, of how many, by layer.

    >>> ties_at_zero({"a": Layer((1, 4), scores=torch.tensor([2.0, 0.0, 0.0, -1.0]))}, {"a": 2})
    {'a': (1, 2)}
    """
    found = {}
    for name, layer in scored.items():
        assert layer.scores is not None
        pattern = layer.pattern
        runs, wanted = layer.scores.unflatten(0, (-1, pattern.m) if pattern.m else (1, -1)), pattern.n or counts[name]
        above, zeros = (runs > 0).sum(1), (runs == 0).sum(1)
        tied = (above < wanted) & (wanted < above + zeros)
        if bool(tied.any()):
            found[name] = int((wanted - above)[tied].sum()), int(zeros[tied].sum())
    return found


def tie_message(ties: Ties, weights: Mapping[str, Tensor]) -> str:
    """What to say of them, with the likely reason."""
    told = listed(f"{name}: {kept} kept of {zeros} that score 0" for name, (kept, zeros) in ties.items())
    nothing = [name for name, weight in weights.items() if not bool(weight.any())]
    reason = (
        f"All weights of {listed(nothing)} are 0, so that no signal and no gradient passes: initialise them otherwise, or leave "
        "them out with layers= and score by magnitude"
        if nothing
        else "Units that are never active, inputs that are always 0, or more asked for than scores tell apart: score on more "
        "samples, lower the density, or use another criterion"
    )
    return f"the cut falls among scores of 0, which of them are kept says nothing: {told}. {reason}."


def unreached_message(names: Collection[str]) -> str:
    """What to say of layers that the measured loss does not depend on."""
    return (
        f"the measured loss does not depend on layer {listed(sorted(names))}: scores there are 0. A mixture's part that saw no "
        "sample needs more of them; a layer that is not used, or is behind detach(), is left out with layers=."
    )


def _all_zero(layer: Layer) -> bool:
    scores = layer.scores
    # What may not be chosen is at minus infinity.
    return scores is not None and bool(((scores == 0) | (scores == -torch.inf)).all())


def _drawn(name: str, layer: Layer) -> Layer:
    assert layer.scores is not None
    draw = torch.Generator().manual_seed(crc32(name.encode()))
    scores = torch.rand(layer.scores.numel(), generator=draw, dtype=torch.float64, device="cpu")
    return replace(layer, scores=scores.masked_fill(layer.scores.cpu() == -torch.inf, -torch.inf))


__all__ = ["Ties", "comparable", "ranked", "tie_message", "ties_at_zero", "unreached_message"]
