"""Polynomials by which streams make normal numbers, and kernels activations: fitted so that the largest error is as small as it gets.

Coefficients are float32, as kernels hold them: each is rounded in its turn, the lowest first, and those left are fitted anew.
`python scripts/polynomials.py` prints them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
POINTS, TURNS = 4000, 400


@dataclass(frozen=True, slots=True)
class Aim:
    """A function between two ends, and the coefficients of 1, x, x**2 ...: `terms` of them, the first ones `given`.

    absolute: errors count as they are, not in parts of the function.
    """

    function: Callable[[Numbers], Numbers]
    ends: tuple[float, float]
    terms: int
    given: tuple[float, ...] = ()
    absolute: bool = False

    def error_in(self, exact: Numbers) -> Numbers:
        """What an error at each of its values counts in."""
        return np.ones_like(exact) if self.absolute else exact


AIMS = {
    # -2 ln(1 + f) / f, which is right to the last bit where f is small.
    "LOG": Aim(lambda f: -2.0 * np.log1p(f) / f, (np.sqrt(0.5) - 1.0, np.sqrt(2.0) - 1.0), 9, (-2.0,)),
    # Of x**2.
    "SINE": Aim(lambda square: np.sin(np.pi / 4 * np.sqrt(square)) / np.sqrt(square), (0.0, 1.0), 4),
    "COSINE": Aim(lambda square: np.cos(np.pi / 4 * np.sqrt(square)), (0.0, 1.0), 5, (1.0,)),
}
# (1 - Phi(t)) exp(t**2 / 2) (t + MIDDLE), of w = (t - MIDDLE) / (t + MIDDLE).
MIDDLE, END = 2.0, 13.2


def _tail(w: Numbers) -> Numbers:
    t = MIDDLE * (1 + w) / (1 - w)
    scaled: Numbers = torch.special.erfcx(torch.from_numpy(t / np.sqrt(2))).numpy()
    return scaled / 2 * (t + MIDDLE)


def _log_tail(place: Numbers) -> Numbers:
    t = torch.from_numpy(END / 2 * (1 + place))
    logarithms: Numbers = torch.special.log_ndtr(-t).numpy()
    return logarithms / np.log(2)


OF_ACTIVATIONS = {
    "POWER": Aim(np.exp2, (-0.5, 0.5), 7, (1.0,)),
    "SHORT_POWER": Aim(np.exp2, (-0.5, 0.5), 5, (1.0,)),
    "LOG_TAIL": Aim(_log_tail, (-1.0, 1.0), 10, absolute=True),
    "TAIL": Aim(_tail, (-1.0, (END - MIDDLE) / (END + MIDDLE)), 10),
}


def fit(aim: Aim) -> tuple[float, ...]:
    """The coefficients, float32."""
    x, found = _points(aim), list(aim.given)
    exact = aim.function(x)
    while len(found) < aim.terms:
        powers = np.stack([x**power for power in range(len(found), aim.terms)], 1)
        left = exact - sum(coefficient * x**power for power, coefficient in enumerate(found))
        found.append(float(np.float32(minimax(left, powers, aim.error_in(exact))[0])))
    return tuple(found)


def minimax(target: Numbers, basis: Numbers, unit: Numbers) -> Numbers:
    """Coefficients of the columns of `basis` whose largest error, in parts of `unit`, is the smallest (Lawson 1961).

    Least squares in turns: a point weighs the more, the larger its error was.

    >>> x = np.linspace(1.0, 2.0, 1001)
    >>> minimax(x**2, np.stack([np.ones_like(x), x], 1), np.ones_like(x)).round(2)  # 3 x - 2.12
    array([-2.12,  3.  ])
    """
    weights = np.full(len(target), 1.0 / len(target))
    for _ in range(TURNS):
        factors = np.sqrt(weights) / np.abs(unit)
        coefficients: Numbers = np.linalg.lstsq(basis * factors[:, None], target * factors, rcond=None)[0]
        weights *= np.abs((target - basis @ coefficients) / unit)
        weights /= weights.sum()
    return coefficients


def largest_error(aim: Aim, coefficients: tuple[float, ...]) -> float:
    """The largest error of a polynomial, evaluated exactly.

    >>> largest_error(Aim(np.exp, (0.0, 1.0), 1), (1.0,)).__round__(3)
    0.632
    """
    x = _points(aim)
    made = sum(coefficient * x**power for power, coefficient in enumerate(coefficients))
    exact = aim.function(x)
    return float(np.abs((made - exact) / aim.error_in(exact)).max())


def _points(aim: Aim) -> Numbers:
    # Chebyshev's, which are dense where errors are large; neither end.
    (low, high), angles = aim.ends, np.pi * (np.arange(POINTS) + 0.5) / POINTS
    return (low + high) / 2 + (high - low) / 2 * np.cos(angles)


def main() -> None:
    """Print the coefficients and their errors."""
    for name, aim in (AIMS | OF_ACTIVATIONS).items():
        coefficients = fit(aim)
        print(f"{name} = {coefficients}  # error {largest_error(aim, coefficients):.1e}")


if __name__ == "__main__":
    main()
