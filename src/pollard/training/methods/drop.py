"""Which grains stay: rules from a `Change` to the indices of `keep` grains, ascending."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.pruning.masks import top_positions
from pollard.training.methods.change import Change

Drop = Callable[[Change], Tensor]


def by_magnitude(change: Change) -> Tensor:
    """Those with the largest `|w|`, summed over a grain; of equal ones the first."""
    weight = change.weight
    return top_positions(weight.by_grain(weight.values().abs()), change.keep, layer=weight.name)


def by_signed_magnitude(change: Change) -> Tensor:
    """The same share of the positive and of the negative weights goes, those closest to zero; zeros go first.

    What is to go is shared out among both signs in proportion to their numbers, each to within one weight. The sign of a
    grain is that of its sum.
    """
    weight = change.weight
    sums = weight.by_grain(weight.values())
    scores = weight.by_grain(weight.values().abs())
    positive, negative = sums > 0, sums < 0
    counts = [int(signed.sum()) for signed in (positive, negative)]
    keep = min(change.keep, sum(counts))
    share = round(keep * counts[0] / max(sum(counts), 1))
    kept = (sums == 0) if keep < change.keep else torch.zeros(len(sums), dtype=torch.bool)
    if keep < change.keep:
        # All that is not zero stays, and the first of the zeros.
        spare = np.flatnonzero(kept.numpy())[change.keep - keep :]
        kept[torch.from_numpy(spare)] = False
    for signed, count in ((positive, share), (negative, keep - share)):
        kept[top_positions(torch.where(signed, scores, -torch.inf), count, layer=weight.name)] = True
    return torch.from_numpy(np.flatnonzero(kept.numpy()))


def by_magnitude_and_gradient(strength: float) -> Drop:
    """Those with the largest `|w| + strength * |dL/dw|`: a small weight that is about to grow stays."""

    def rule(change: Change) -> Tensor:
        weight = change.weight
        gradient = weight.gradient()
        if gradient is None:
            raise InvalidInput(
                f"layer {weight.name!r} without a gradient",
                "a gradient to score by",
                "Call loss.backward() before step().",
            )
        scores = weight.by_grain(weight.values().abs() + strength * gradient.abs())
        return top_positions(scores, change.keep, layer=weight.name)

    return rule
