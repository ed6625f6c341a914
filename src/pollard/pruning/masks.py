"""The one top-k of the library: exact count, ties by lowest index, linear time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pollard.errors import InvalidInput

_PART = 1 << 20


def top_positions(scores: Tensor, count: int, *, layer: str | None = None) -> Tensor:
    """The positions of the `count` highest of `scores` `(n,)`, ascending, int64, on the CPU.

    Exactly `count` of them: of equal scores the lowest positions are taken, so growing `count` only ever adds positions.
    Infinities rank as numbers do. Linear time; memory beyond the result is one copy of the scores.
    Raises InvalidInput for NaN (naming `layer` where given), for scores that are not 1-D floats, and for a count
    outside [0, n].

    >>> top_positions(torch.tensor([0.5, 2.0, 0.5, -1.0, 0.5]), 3)
    tensor([0, 1, 2])
    """
    values = _ranked(scores, layer)
    if not 0 <= count <= values.size:
        raise InvalidInput(
            f"a count of {count} among {values.size} scores{_of(layer)}",
            f"a count in [0, {values.size}]",
            "Ask for at most as many grains as there are.",
        )
    if count in (0, values.size):
        return torch.arange(count)
    threshold = _threshold(values, count)
    ties = count - int(np.count_nonzero(values > threshold))
    kept = np.empty(count, np.int64)
    filled = 0
    # Part by part, so that the positions of many tied scores never exist all at once.
    for start in range(0, values.size, _PART):
        part = values[start : start + _PART]
        keep = part > threshold
        if ties:
            tied = np.flatnonzero(part == threshold)[:ties]
            keep[tied] = True
            ties -= tied.size
        found = np.flatnonzero(keep)
        kept[filled : filled + found.size] = found + start
        filled += found.size
    return torch.from_numpy(kept)


def shares(count: int, sizes: Tensor) -> list[int]:
    """`count` shared out in proportion to `sizes`, whole numbers `(n,)`, each to within one; none gets more than its size.

    >>> shares(5, torch.tensor([4, 4, 0, 4])), shares(12, torch.tensor([4, 4, 0, 4]))
    ([1, 2, 0, 2], [4, 4, 0, 4])
    """
    ends = count * sizes.cumsum(0) // max(1, int(sizes.sum()))
    found: list[int] = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return found


def _threshold(values: np.ndarray[tuple[int], np.dtype[np.floating]], count: int) -> float:
    """The `count`-th highest of `values`, which have it exactly."""
    # What was dropped before, or no signal reaches, ties for the lowest: numpy's selection is slow where most are equal.
    lowest = values.min()
    above = values[values > lowest]
    if count > above.size:
        return float(lowest)
    above.partition(above.size - count)
    return float(above[above.size - count])


def _ranked(scores: Tensor, layer: str | None) -> np.ndarray[tuple[int], np.dtype[np.floating]]:
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
