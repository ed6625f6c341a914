"""A topology that stays: the baseline of all that move."""

from __future__ import annotations

from pollard.training.methods.method import Method, method


@method
def static(density: float, steps: int) -> Method:
    """What is kept first is kept: sparse training without updates.

    >>> static(0.1, steps=1000).due(100)
    False
    """
    del density, steps
    return Method(name="static", cite="", every=1, end=0)
