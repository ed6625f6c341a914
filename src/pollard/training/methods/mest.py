"""MEST: drop by weight and gradient, grow at random, within an elastic bound on memory."""

from __future__ import annotations

from functools import partial

from pollard.training.methods import drop, grow
from pollard.training.methods.method import Method, method, update_steps
from pollard.training.schedules import Schedule, piecewise


@method
def mest(
    density: float,
    steps: int,
    *,
    epoch: int | None = None,
    every: int = 0,
    margin: float = 0.02,
    soft: bool = False,
    strength: float = 0.01,
) -> Method:
    """Memory-economic sparse training: the lowest `|w| + strength * |dL/dw|` go, others come at random, no dense gradient.

    margin: density exchanged at each update: in full up to 9/16 of `steps`, half of it up to 3/4, then none. soft: hold
    `margin` more between updates, so that what is dropped has been outgrown (EM&S); else drop first, then grow (EM).
    every: steps between updates; 0 for five epochs of `epoch` steps, or a hundredth of `steps`. Every layer has the same
    density unless `allocation=` says otherwise.
    Source: Yuan et al., MEST: accurate and fast memory-economic sparse training framework on the edge, NeurIPS 2021.

    >>> [round(mest(0.1, steps=1600, every=100).fraction(step), 3) for step in (100, 1000, 1300)]
    [0.2, 0.1, 0.0]
    """
    margin = min(margin, density, 1.0 - density)
    half, none = round(9 / 16 * steps), round(3 / 4 * steps)
    extra: Schedule = piecewise({0: margin, half: margin / 2, none: 0.0})
    every = update_steps(every, epoch and 5 * epoch, steps)
    common = {
        "cite": "yuan2021mest",
        "every": every,
        # So that one falls on the end of the exchange, where what was held above the density goes.
        "start": none % every or every,
        "end": max(none, every),
        "allocation": "uniform",
        "scores_gradient": True,
        "drop": drop.by_magnitude_and_gradient(strength),
        "grow": grow.at_random,
    }
    if not soft:
        return Method(name="mest", fraction=partial(_share, extra, density), **common)  # type: ignore[arg-type]  # a dict of unlike values
    return Method(
        name="mest",
        # What is held includes the margin: the update drops it, and grows as much again.
        fraction=partial(_share_of_all, extra, density),
        density=partial(_held, extra, density),
        **common,  # type: ignore[arg-type]  # as above
    )


def _share(extra: Schedule, density: float, step: int) -> float:
    return extra(step) / density


def _share_of_all(extra: Schedule, density: float, step: int) -> float:
    return extra(step) / _held(extra, density, step)


def _held(extra: Schedule, density: float, step: int) -> float:
    return density + extra(step)
