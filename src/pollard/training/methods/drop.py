"""Which grains stay: rules from a `Change` to bool `(grains,)`, True for `keep` of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pollard.pruning.masks import top_mask
from pollard.training.methods.change import Change

Drop = Callable[[Change], Tensor]


def by_magnitude(change: Change) -> Tensor:
    """Those with the largest `|w|`, summed over a grain; of equal ones the first."""
    weight = change.weight
    return top_mask(weight.by_grain(weight.values().abs()), change.keep, layer=weight.name)


def by_signed_magnitude(change: Change) -> Tensor:
    """The same share of the positive and of the negative weights goes, those closest to zero; zeros go first.

    What is to go is shared out among both signs in proportion to their numbers, each to within one weight. The sign of a
    grain is that of its sum.
    """
    weight = change.weight
    scores = weight.by_grain(weight.values()).cpu()
    if weight.size > 1:
        scores = scores.sign() * weight.by_grain(weight.values().abs()).cpu()
    # numpy compares several times faster than torch does
    signed = (scores if scores.dtype == torch.float64 else scores.float()).numpy()
    positive, negative = int(np.count_nonzero(signed > 0)), int(np.count_nonzero(signed < 0))
    keep = min(change.keep, positive + negative)
    share = round(keep * positive / max(positive + negative, 1))
    stays = top_mask(scores, share, layer=weight.name)
    stays |= top_mask(-scores, keep - share, layer=weight.name)
    if keep < change.keep:
        # All that is not zero stays, and the first of the zeros.
        zeros = (scores == 0).nonzero().view(-1)
        stays[zeros[: change.keep - keep]] = True
    return stays


def by_magnitude_and_gradient(strength: float) -> Drop:
    """Those with the largest `|w| + strength * |dL/dw|`: a small weight that is about to grow stays."""
    return partial(_by_magnitude_and_gradient, strength)


def _by_magnitude_and_gradient(strength: float, change: Change) -> Tensor:
    weight = change.weight
    magnitudes, gradient = weight.values().abs(), weight.gradient()
    # A layer that this step did not use has none: that is one of zero.
    scores = weight.by_grain(magnitudes if gradient is None else magnitudes + strength * gradient.abs())
    return top_mask(scores, change.keep, layer=weight.name)
