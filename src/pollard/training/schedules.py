"""Learning rates, densities and fractions as plain functions of the step: no state, so nothing to save.

A schedule goes from `start` at step 0 to `end` at step `steps`, and stays there. `delayed`, `cyclic`, `piecewise` and
`warmed_up` make schedules of schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from pollard.arguments import require_one_of
from pollard.errors import InvalidInput

Schedule = Callable[[int], float]

ONE_CYCLE_START = 25.0
ONE_CYCLE_END = 250_000.0
ONE_CYCLE_RISE = 0.3
# Steepness and middle of the pruning schedule of Hubens et al., as their code has them.
SIGMOID_STEEPNESS = 14.0
SIGMOID_OFFSET = 6.0


def constant(lr: float) -> Schedule:
    """`lr` at every step."""
    return partial(_constant, lr)


def decay(lr: float, every: int, factor: float) -> Schedule:
    """Staircase, `lr * factor ** floor(step / every)`.

    >>> [round(decay(0.1, every=2, factor=0.1)(step), 6) for step in range(5)]
    [0.1, 0.1, 0.01, 0.01, 0.001]
    """
    return partial(_decay, lr, every, factor)


def cosine(lr: float, steps: int, end: float = 0.0) -> Schedule:
    """Half a cosine from `lr` at step 0 to `end` at `steps` and after (Loshchilov & Hutter 2017, without restarts).

    >>> [round(cosine(1.0, steps=4)(step), 4) for step in (0, 2, 4, 9)]
    [1.0, 0.5, 0.0, 0.0]
    """
    return partial(_cosine, lr, steps, end)


def linear(start: float, steps: int, end: float = 0.0) -> Schedule:
    """A straight line from `start` at step 0 to `end` at `steps` and after.

    >>> [linear(1.0, steps=4)(step) for step in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    return partial(_linear, start, steps, end)


def cubic(start: float, steps: int, end: float = 0.0) -> Schedule:
    """``end + (start - end) * (1 - step / steps)**3``, fast at first (Zhu & Gupta 2017, eq. 1, in densities).

    >>> [cubic(1.0, steps=2, end=0.2)(step) for step in (0, 1, 2)]
    [1.0, 0.30000000000000004, 0.2]
    """
    return partial(_cubic, start, steps, end)


def exponential(start: float, steps: int, end: float) -> Schedule:
    """``start * (end / start) ** (step / steps)``: equal ratios; both ends above 0.

    >>> [round(exponential(1.0, steps=2, end=0.01)(step), 6) for step in (0, 1, 2, 9)]
    [1.0, 0.1, 0.01, 0.01]
    """
    if not (start > 0.0 and end > 0.0):
        raise InvalidInput(
            f"an exponential schedule from {start} to {end}", "two numbers above 0", "Use linear or cosine to reach 0."
        )
    return partial(_exponential, start, steps, end)


def sigmoid(start: float, steps: int, end: float = 0.0) -> Schedule:
    """``start + (end - start) * (1 + e**(b - a)) / (1 + e**(b - a p))``, a = 14, b = 6, p = step / steps.

    Slow, fast and slow again: the pruning schedule called one-cycle by its authors (Hubens et al. 2021).

    >>> [round(sigmoid(1.0, steps=4, end=0.1)(step), 3) for step in range(5)]
    [0.998, 0.932, 0.342, 0.11, 0.1]
    """
    return partial(_sigmoid, start, steps, end)


def cyclic(schedule: Schedule, every: int) -> Schedule:
    """`schedule` from its beginning again, every `every` steps.

    >>> [cyclic(linear(1.0, steps=2), every=2)(step) for step in range(5)]
    [1.0, 0.5, 1.0, 0.5, 1.0]
    """
    return partial(_cyclic, schedule, every)


def piecewise(points: Mapping[int, float]) -> Schedule:
    """A staircase: from each step of `points` on, the number that stands there; before the first, the first's.

    >>> [piecewise({0: 1.0, 10: 0.1})(step) for step in (0, 9, 10, 99)]
    [1.0, 1.0, 0.1, 0.1]
    """
    if not points:
        raise InvalidInput("a schedule of no points", "at least one", "Give {step: number}.")
    return partial(_piecewise, dict(points))


def delayed(schedule: Schedule, first: int) -> Schedule:
    """`schedule`, begun at step `first`; before that, where it begins.

    >>> [delayed(linear(1.0, steps=2), first=3)(step) for step in (0, 3, 4, 5)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return partial(_delayed, schedule, first)


def one_cycle(peak: float, steps: int) -> Schedule:
    """Half a cosine up from `peak / 25` in the first 30 % of `steps`, then one down to `peak / 250000` (Smith 2018).

    >>> [round(one_cycle(1.0, steps=10)(step), 4) for step in (0, 3, 10)]
    [0.04, 1.0, 0.0]
    """
    return partial(_one_cycle, peak, steps)


def warmed_up(schedule: Schedule, steps: int) -> Schedule:
    """`schedule`, scaled linearly from `1 / steps` to 1 over its first `steps` steps.

    >>> [warmed_up(constant(1.0), steps=4)(step) for step in (0, 1, 3, 8)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return partial(_warmed_up, schedule, steps)


def between(name: str, start: float, steps: int, end: float) -> Schedule:
    """The schedule called `name` from `start` to `end`: constant, linear, cubic, cosine, exponential, or one-cycle.

    Raises InvalidInput for another name. constant is at `start` throughout.

    >>> between("cosine", 0.3, steps=10, end=0.0)(5)
    0.15
    """
    require_one_of("schedule", name, SHAPES, "cosine is common for fractions.")
    return SHAPES[name](start, steps, end)


# What a schedule is at a step, as functions of the module: a schedule, and what holds one, can be pickled.


def _constant(lr: float, _step: int) -> float:
    return lr


def _decay(lr: float, every: int, factor: float, step: int) -> float:
    return lr * factor ** (step // every)


def _cosine(lr: float, steps: int, end: float, step: int) -> float:
    return _ease(lr, end, _progress(step, steps))


def _linear(start: float, steps: int, end: float, step: int) -> float:
    return end + (start - end) * (1.0 - _progress(step, steps))


def _cubic(start: float, steps: int, end: float, step: int) -> float:
    return end + (start - end) * (1.0 - _progress(step, steps)) ** 3


def _exponential(start: float, steps: int, end: float, step: int) -> float:
    ratio: float = (end / start) ** _progress(step, steps)
    return start * ratio


def _sigmoid(start: float, steps: int, end: float, step: int) -> float:
    top = 1.0 + math.exp(SIGMOID_OFFSET - SIGMOID_STEEPNESS)
    slope = 1.0 + math.exp(SIGMOID_OFFSET - SIGMOID_STEEPNESS * _progress(step, steps))
    return start + (end - start) * top / slope


def _cyclic(schedule: Schedule, every: int, step: int) -> float:
    return schedule(step % every)


def _piecewise(points: Mapping[int, float], step: int) -> float:
    return points[max((each for each in points if each <= step), default=min(points))]


def _delayed(schedule: Schedule, first: int, step: int) -> float:
    return schedule(max(0, step - first))


def _one_cycle(peak: float, steps: int, step: int) -> float:
    top = ONE_CYCLE_RISE * steps
    if step < top:
        return _ease(peak / ONE_CYCLE_START, peak, step / top)
    return _ease(peak, peak / ONE_CYCLE_END, (step - top) / (steps - top))


def _warmed_up(schedule: Schedule, steps: int, step: int) -> float:
    return schedule(step) * min(1.0, (step + 1) / steps)


def _progress(step: int, steps: int) -> float:
    return min(1.0, max(0.0, step / steps)) if steps > 0 else 1.0


def _ease(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * min(1.0, progress))) / 2.0


SHAPES: dict[str, Callable[[float, int, float], Schedule]] = {
    "constant": lambda start, _steps, _end: constant(start),
    "linear": linear,
    "cubic": cubic,
    "cosine": cosine,
    "exponential": exponential,
    "one-cycle": sigmoid,
}
