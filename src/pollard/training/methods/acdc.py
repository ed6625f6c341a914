"""AC/DC: phases in which all weights train, and phases in which only the largest do, by turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pollard.errors import InvalidInput
from pollard.training.methods.method import Method, method
from pollard.training.schedules import piecewise
from pollard.training.weights import Weight

PHASE = 0.05  # of all steps


@dataclass(frozen=True, kw_only=True)
class Alternating(Method):
    """With a momentum that begins anew whenever weights come back."""

    def after_update(self, weights: Mapping[str, Weight], step: int) -> None:
        """Forget where a sparse phase was going."""
        assert self.density is not None
        if step and self.density(step) > self.density(step - 1):
            for weight in weights.values():
                weight.forget_momentum()


@method
def acdc(
    density: float,
    steps: int,
    *,
    every: int = 0,
    dense_until: float = 0.1,
    sparse_from: float = 0.85,
    allocation: str = "global",
) -> Method:
    """Alternating compressed and decompressed training: all weights train, then only the largest `|w|`, and so on in turn.

    every: steps of a phase; 0 for a twentieth of `steps`. Dense up to the fraction `dense_until` of `steps`; then sparse and
    dense phases, as many pairs as there is room for; sparse from `sparse_from` on, to within a phase, after a dense phase that
    fills what is left. What comes back starts from zero, and the momentum of all these weights with it. allocation: global, one
    ranking of the magnitudes of all layers, as published, or uniform, er, erk. Its dense phases take what a dense network takes.
    Source: Peste, Iofinova, Vladu, Alistarh, AC/DC: alternating compressed/decompressed training of deep neural networks,
    NeurIPS 2021, and the authors' code.

    >>> made = acdc(0.1, steps=100)
    >>> [step for step in range(1, 101) if made.density(step) != made.density(step - 1)]
    [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
    """
    every = every or max(1, round(PHASE * steps))
    first = max(1, round(dense_until * steps))
    if not 0 <= dense_until < sparse_from <= 1:
        raise InvalidInput(
            f"dense phases from step {first} to {round(sparse_from * steps)} of {steps}",
            "a sparse phase after them, within the run",
            "Pass 0 <= dense_until < sparse_from <= 1.",
        )
    phases = max(0, round(sparse_from * steps) - first) // every
    last = first + phases * every
    # Pairs of a sparse and a dense phase; where one more is left over, it is dense.
    points = {first + i * every: density if i % 2 == 0 and i + 1 < phases else 1.0 for i in range(phases)}
    return Alternating(
        name="acdc",
        cite="peste2021acdc",
        every=every,
        start=first,
        end=last,
        density=piecewise({0: 1.0, **points, last: density}),
        allocation=allocation,
    )
