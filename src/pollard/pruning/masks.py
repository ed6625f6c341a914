"""The one top-k of the library: exact count, ties by lowest index, linear time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pollard.errors import InvalidInput, PatternError
from pollard.formats.pattern import Pattern
from pollard.kernels.indices.scanning import PART, Flags, Scores, reaching, within

# Scores that say where to search, and how many standard deviations of theirs to search on either side.
_SAMPLE = 1 << 14
_DEVIATIONS = 3.0


def top_positions(scores: Tensor, count: int, *, layer: str | None = None) -> Tensor:
    """The positions of the `count` highest of `scores` `(n,)`, ascending, int64, on the CPU: those that `top_mask` marks.

    >>> top_positions(torch.tensor([0.5, 2.0, 0.5, -1.0, 0.5]), 3)
    tensor([0, 1, 2])
    """
    return torch.from_numpy(np.flatnonzero(top_mask(scores, count, layer=layer).numpy()))


def top_mask(scores: Tensor, count: int, *, layer: str | None = None) -> Tensor:
    """Which are the `count` highest of `scores` `(n,)`: bool `(n,)`, on the CPU.

    Exactly `count` of them: of equal scores the lowest positions are taken, so growing `count` only ever adds positions.
    Infinities rank as numbers do. Linear time; memory beyond the result is a copy of the scores at most.
    Raises InvalidInput for NaN (naming `layer` where given), for scores that are not 1-D floats, and for a count
    outside [0, n].

    >>> top_mask(torch.tensor([0.5, 2.0, 0.5, -1.0, 0.5]), 3)
    tensor([ True,  True,  True, False, False])
    """
    values = _ranked(scores, layer)
    if not 0 <= count <= values.size:
        raise InvalidInput(
            f"a count of {count} among {values.size} scores{_of(layer)}",
            f"a count in [0, {values.size}]",
            "Ask for at most as many grains as there are.",
        )
    if count in (0, values.size):
        return torch.full((values.size,), count > 0, dtype=torch.bool, device="cpu")
    threshold, above, through = _threshold(values, count)
    best = reaching(values, threshold, strictly=count < through)
    if count < through:
        _mark_ties(best, values, threshold, count - above)
    return torch.from_numpy(best)


def top_of_runs(scores: Tensor, n: int, m: int, *, layer: str | None = None) -> Tensor:
    """Which are the `n` highest of every `m` consecutive `scores` `(runs * m,)`: bool, on the CPU; ties as of `top_mask`.

    >>> top_of_runs(torch.tensor([0.5, 2.0, 0.5, -1.0, 3.0, 4.0, 5.0, 6.0]), 2, 4).int()
    tensor([1, 1, 0, 0, 0, 0, 1, 1], dtype=torch.int32)
    """
    runs = torch.from_numpy(_ranked(scores, layer)).view(-1, m)
    ahead = torch.zeros(runs.shape, dtype=torch.int8, device="cpu")
    for later in range(1, m):
        for earlier in range(later):
            first = runs[:, earlier] >= runs[:, later]
            ahead[:, later] += first
            ahead[:, earlier] += ~first
    return (ahead < n).view(-1)


def best_grains(scores: Tensor, count: int, pattern: Pattern, *, layer: str | None = None) -> Tensor:
    """The positions of the `count` highest of all `scores` `(grains,)`, or of the n highest of every m under `N:M`; ascending.

    Raises PatternError where less than n of some m may be chosen, the others being at minus infinity.
    """
    if not pattern.m:
        return top_positions(scores, count, layer=layer)
    positions = torch.from_numpy(np.flatnonzero(top_of_runs(scores, pattern.n, pattern.m, layer=layer).numpy()))
    if bool((scores.cpu()[positions] == -torch.inf).any()):
        raise PatternError(
            f"less than {pattern.n} of some {pattern.m} weights to choose from{_of(layer)}",
            f"{pattern.n} of every {pattern.m}, for pattern {pattern}",
            "Prune an unstructured plan further without a pattern, or start from the dense layer.",
        )
    return positions


def shares(count: int, sizes: Tensor) -> list[int]:
    """`count` shared out in proportion to `sizes`, whole numbers `(n,)`, each to within one; none gets more than its size.

    >>> shares(5, torch.tensor([4, 4, 0, 4])), shares(12, torch.tensor([4, 4, 0, 4]))
    ([1, 2, 0, 2], [4, 4, 0, 4])
    """
    ends = count * sizes.cumsum(0) // max(1, int(sizes.sum()))
    found: list[int] = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return found


def _mark_ties(best: Flags, values: Scores, threshold: float, ties: int) -> None:
    # Part by part, so that the positions of many tied scores never exist all at once.
    for start in range(0, values.size, PART):
        if not ties:
            return
        tied = np.flatnonzero(values[start : start + PART] == threshold)[:ties]
        best[start + tied] = True
        ties -= tied.size


def _threshold(values: Scores, count: int) -> tuple[float, int, int]:
    """The `count`-th highest of `values`, which are more than that; how many are above it, and how many not below."""
    low, high = _bracket(values, count)
    inside, up_to, above = within(values, low, high)
    if above < count <= up_to:
        return _nth(inside, count - above, above)
    return _outside(values, count, (low, high), (up_to, above))


def _outside(
    values: Scores, count: int, bracket: tuple[float, float], counted: tuple[int, int]
) -> tuple[float, int, int]:
    # One of the bracket's own values, which many may share; or else the sample misled, and all that is past it is searched.
    (low, high), (up_to, above) = bracket, counted
    if count <= above:
        strictly = int(np.count_nonzero(values > high))
        if count > strictly:
            return high, strictly, above
        return _nth(values[values > high], count, 0)
    least = int(np.count_nonzero(values >= low))
    if count <= least:
        return low, up_to, least
    return _nth(values[values < low], count - least, least)


def _nth(candidates: Scores, rank: int, above: int) -> tuple[float, int, int]:
    # As `_threshold`, of candidates that may be reordered, with `above` others above them all.
    candidates.partition(candidates.size - rank)
    threshold = float(candidates[candidates.size - rank])
    strictly, least = np.count_nonzero(candidates > threshold), np.count_nonzero(candidates >= threshold)
    return threshold, above + int(strictly), above + int(least)


def _bracket(values: Scores, count: int) -> tuple[float, float]:
    """Two numbers that the `count`-th highest of `values` very likely lies between, from a sample of them."""
    # An odd step: an even one would see the same few columns of a weight over and over.
    sample = np.sort(values[:: values.size // _SAMPLE | 1])
    share = count / values.size
    middle, margin = (1 - share) * sample.size, _DEVIATIONS * math.sqrt(sample.size * share * (1 - share)) + 1
    first, last = math.floor(middle - margin), math.ceil(middle + margin)
    low = float(sample[first]) if first >= 0 else -math.inf
    high = float(sample[last]) if last < sample.size else math.inf
    return low, high


def _ranked(scores: Tensor, layer: str | None) -> Scores:
    if scores.dim() != 1 or not scores.is_floating_point():
        raise InvalidInput(
            f"scores of shape {tuple(scores.shape)} and dtype {scores.dtype}{_of(layer)}",
            "a 1-D tensor of floats",
            "Flatten the scores, and convert them to a float dtype.",
        )
    scores = scores.detach().cpu()
    values = (scores if scores.dtype is torch.float64 else scores.float()).numpy()
    if values.size and np.isnan(values.max()):
        raise InvalidInput(
            f"{int(np.isnan(values).sum())} NaN among {values.size} scores{_of(layer)}",
            "scores that can be ordered",
            "Look for NaN in the weights, the scoring batch or the loss.",
        )
    return values


def _of(layer: str | None) -> str:
    return "" if layer is None else f" of layer {layer!r}"
