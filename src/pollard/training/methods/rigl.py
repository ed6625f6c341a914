"""RigL: drop the smallest magnitudes, grow the largest gradients."""

from __future__ import annotations

from dataclasses import dataclass

from pollard.training.methods import drop, grow
from pollard.training.methods.method import Method, method, often
from pollard.training.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class GradientGrowth(Method):
    """A method that looks at the gradients of all weights at each update."""

    def update_cost(self, forward: float, dense: float) -> float:
        """``2 f + f_dense``: the gradient of the weights is that of all."""
        return 2.0 * forward + dense


@method
def rigl(density: float, steps: int, *, every: int = 0, fraction: float = 0.3, until: float = 0.75) -> Method:
    """Rigging the lottery: every 100 steps the smallest `|w|` go and the largest `|dL/dw|` come, at zero.

    The fraction exchanged falls from `fraction` to 0 along half a cosine, over the first `until` of `steps`. An
    update takes the place of the optimizer's step. every: steps between updates; 0 for 100, or ten updates in a
    short run. Gradients of inactive weights are those of the step's own passes.
    Source: Evci et al., Rigging the lottery: making all tickets winners, ICML 2020, algorithm 1.

    >>> lottery = rigl(0.1, steps=1000, every=100)
    >>> lottery.due(700), lottery.due(800), round(lottery.fraction(375), 2)
    (True, False, 0.15)
    """
    del density
    end = round(until * steps)
    every = often(every, 100, end)
    return GradientGrowth(
        name="rigl",
        cite="evci2020rigging",
        every=every,
        end=end,
        fraction=cosine(fraction, end),
        drop=drop.by_magnitude,
        grow=grow.by_gradient,
        window=1,
        instead_of_step=True,
    )
