"""Learning rates as plain functions of the step: no state, so nothing to save."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]

ONE_CYCLE_START = 25.0
ONE_CYCLE_END = 250_000.0
ONE_CYCLE_RISE = 0.3


def constant(lr: float) -> Schedule:
    """`lr` at every step."""
    return lambda _: lr


def decay(lr: float, every: int, factor: float) -> Schedule:
    """Staircase, `lr * factor ** floor(step / every)`.

    >>> [round(decay(0.1, every=2, factor=0.1)(step), 6) for step in range(5)]
    [0.1, 0.1, 0.01, 0.01, 0.001]
    """
    return lambda step: lr * factor ** (step // every)


def cosine(lr: float, steps: int, end: float = 0.0) -> Schedule:
    """Half a cosine from `lr` at step 0 to `end` at `steps` and after (Loshchilov & Hutter 2017, without restarts).

    >>> [round(cosine(1.0, steps=4)(step), 4) for step in (0, 2, 4, 9)]
    [1.0, 0.5, 0.0, 0.0]
    """
    return lambda step: _ease(lr, end, step / steps)


def one_cycle(peak: float, steps: int) -> Schedule:
    """Half a cosine up from `peak / 25` in the first 30 % of `steps`, then one down to `peak / 250000` (Smith 2018).

    >>> [round(one_cycle(1.0, steps=10)(step), 4) for step in (0, 3, 10)]
    [0.04, 1.0, 0.0]
    """
    top = ONE_CYCLE_RISE * steps

    def lr(step: int) -> float:
        if step < top:
            return _ease(peak / ONE_CYCLE_START, peak, step / top)
        return _ease(peak, peak / ONE_CYCLE_END, (step - top) / (steps - top))

    return lr


def warmed_up(schedule: Schedule, steps: int) -> Schedule:
    """`schedule`, scaled linearly from `1 / steps` to 1 over its first `steps` steps.

    >>> [warmed_up(constant(1.0), steps=4)(step) for step in (0, 1, 3, 8)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return lambda step: schedule(step) * min(1.0, (step + 1) / steps)


def _ease(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * min(1.0, progress))) / 2.0
