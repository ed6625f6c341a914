"""GraNet: gradual pruning with regrowth at every step of it."""

from __future__ import annotations

from pollard.training.methods import grow
from pollard.training.methods.method import Method, method, often
from pollard.training.methods.rigl import GradientGrowth
from pollard.training.schedules import between, cosine


@method
def granet(
    density: float,
    steps: int,
    *,
    every: int = 0,
    fraction: float = 0.5,
    until: float = 0.75,
    start_density: float = 0.5,
    curve: str = "cubic",
    allocation: str = "global",
) -> Method:
    """Gradual pruning with neuroregeneration: prune to a density that falls along a cubic, then exchange as RigL does.

    every: steps between updates; 0 for 1000, or ten updates in a short run. The density falls from `start_density`
    to `density` over the first `until` of `steps`, what goes is ranked over all layers; then a `fraction` of each
    layer, falling along a cosine, is dropped by magnitude and grown by gradient.
    Source: Liu et al., Sparse training via boosting pruning plasticity with neuroregeneration, NeurIPS 2021.

    >>> [round(granet(0.1, steps=4000).density(step), 3) for step in (0, 1000, 3000)]
    [0.5, 0.219, 0.1]
    """
    end = round(until * steps)
    every = min(often(every, 1000, end), max(1, end))
    return GradientGrowth(
        name="granet",
        cite="liu2021granet",
        every=every,
        start=end % every or every,
        end=end,
        fraction=cosine(fraction, end),
        density=between(curve, max(start_density, density), end, density),
        allocation=allocation,
        grow=grow.by_gradient,
        window=1,
    )
