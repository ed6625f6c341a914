"""SET: drop the weights closest to zero, grow as many at random."""

from __future__ import annotations

from pollard.training.methods import drop, grow
from pollard.training.methods.method import Method, method, update_steps
from pollard.training.schedules import constant, cosine


@method
def set_(
    density: float,
    steps: int,
    *,
    epoch: int | None = None,
    every: int = 0,
    fraction: float = 0.3,
    signed: bool = True,
    deviation: float = 0.1,
    annealed: bool = False,
) -> Method:
    """Sparse evolutionary training: once an epoch the 30 % closest to zero go, as many others come at random.

    every: steps between updates; 0 for an `epoch` of so many steps, or a hundredth of `steps`. None follows the last step.
    signed: drop the same share of positive and of negative weights, as published. deviation: of the normal distribution
    that grown weights start from. annealed: let the fraction fall along a cosine to 0 at the end, as later codes do.
    Source: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018.

    >>> evolution = set_(0.1, steps=1000, every=100)
    >>> evolution.due(100), evolution.due(150), evolution.due(1000)
    (True, False, False)
    """
    del density
    every = update_steps(every, epoch, steps)
    return Method(
        name="set",
        cite="mocanu2018scalable",
        every=every,
        end=steps - 1,
        fraction=cosine(fraction, steps) if annealed else constant(fraction),
        drop=drop.by_signed_magnitude if signed else drop.by_magnitude,
        grow=grow.at_random,
        starting=grow.from_normal(deviation),
    )
