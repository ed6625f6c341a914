"""Gradual magnitude pruning, and DSD: densities that fall, and rise again."""

from __future__ import annotations

from pollard.errors import InvalidInput
from pollard.training.methods.method import Method, method, often
from pollard.training.schedules import between, delayed, piecewise


@method
def gmp(
    density: float,
    steps: int,
    *,
    every: int = 0,
    first: float = 0.0,
    until: float = 0.75,
    start_density: float = 1.0,
    curve: str = "cubic",
    allocation: str = "uniform",
) -> Method:
    """Gradual magnitude pruning: the smallest `|w|` go, a few every 100 steps, along a cubic; nothing comes back.

    every: steps between updates; 0 for 100, or ten updates in a short run. The density falls from `start_density`
    to `density` between the fractions `first` and `until` of `steps`. allocation: uniform, as published, er, erk,
    or global, one ranking of the magnitudes of all layers.
    Source: Zhu & Gupta, To prune, or not to prune, 2017, equation 1.

    >>> [round(gmp(0.1, steps=1000).density(step), 3) for step in (0, 375, 750)]
    [1.0, 0.213, 0.1]
    """
    begin, end = round(first * steps), round(until * steps)
    every = min(often(every, 100, end - begin), max(1, end - begin))
    return Method(
        name="gmp",
        cite="zhu2017prune",
        every=every,
        start=begin + ((end - begin) % every or every),
        end=end,
        density=delayed(between(curve, start_density, end - begin, density), begin),
        allocation=allocation,
    )


@method
def dsd(density: float, steps: int, *, sparse_from: float = 1 / 3, dense_from: float = 2 / 3) -> Method:
    """Dense, sparse, dense: train all, then only the largest `|w|`, then all again, those that come back from zero.

    The sparse phase lies between the fractions `sparse_from` and `dense_from` of `steps`. The authors lower the learning
    rate tenfold in the last phase: that is your schedule's to do.
    Source: Han et al., DSD: dense-sparse-dense training for deep neural networks, ICLR 2017.

    >>> [dsd(0.4, steps=300).density(step) for step in (99, 100, 200)]
    [1.0, 0.4, 1.0]
    """
    down, up = max(1, round(sparse_from * steps)), round(dense_from * steps)
    if not down < up <= steps:
        raise InvalidInput(
            f"a sparse phase from step {down} to {up} of {steps}",
            "one that begins before it ends, within the run",
            "Pass 0 < sparse_from < dense_from <= 1, and more steps.",
        )
    return Method(
        name="dsd",
        cite="han2017dsd",
        every=up - down,
        start=down,
        end=up,
        density=piecewise({0: 1.0, down: density, up: 1.0}),
        allocation="uniform",
    )
