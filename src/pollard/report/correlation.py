"""Which aim of pruning goes with the accuracy that training ends at: rank correlations over the points of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from pollard.report.accuracy import Point, densities
from pollard.report.render import plain_table
from pollard.report.significance import FEWEST, LEVEL, Interval

Array = np.ndarray[Any, Any]

# Aim to what it is called, and whether the idea behind it is that more is better.
AIMS = {
    "loss": ("loss right after pruning", False),
    "accuracy": ("accuracy right after pruning", True),
    "first_order": ("predicted rise of the loss, first order", False),
    "second_order": ("predicted rise of the loss, second order", False),
    "gradient_norm": ("gradient norm after pruning", True),
    "singular_value": ("mean singular value of the Jacobian", True),
    "ntk_trace": ("trace of the tangent kernel", True),
    "trainability": ("trainability: mean accuracy of the first stage", True),
}
FEWEST_POINTS = 4
RESAMPLES = 2000


class Rank(NamedTuple):
    """Spearman's rank correlation, its 95 % interval over series drawn anew, and how many series there are.

    Runs of one series differ in little but their seed, so it is series that are drawn, each with all of its runs (a cluster
    bootstrap). value: not a number where there are fewer than four points, or all are equal. interval: None for fewer than
    three series, or where some draw is of equal points.
    """

    value: float
    interval: Interval | None
    series: int

    @property
    def told(self) -> str:
        """With its interval.

        >>> Rank(-0.5, Interval(-0.75, 0.25), 4).told, Rank(0.5, None, 2).told
        ('-0.50 (-0.75 to +0.25)', '+0.50')
        """
        if math.isnan(self.value):
            return "-"
        return f"{self.value:+.2f}" + (
            f" ({self.interval.low:+.2f} to {self.interval.high:+.2f})" if self.interval else ""
        )


@dataclass(frozen=True, slots=True)
class Correlation:
    """The rank correlation of an aim with the final test accuracy: over all points, and over those of each density."""

    aim: str
    overall: Rank
    by_density: dict[float, Rank]


def aim_of(point: Point, aim: str) -> float | None:
    """The figure of one point, None where it was not measured, or nothing was pruned."""
    if point["density"] == 1.0:
        return None
    if aim == "trainability":
        return point.get("trainability")
    found: dict[str, Any] = point.get("aims") or {}
    return found.get(aim)


def correlations(points: Sequence[Point]) -> list[Correlation]:
    """One for each aim, over the pruned points; dense ones have nothing to measure.

    >>> points = [{"label": "", "density": 0.1, "test_accuracy": a, "trainability": a * a} for a in (0.2, 0.3, 0.4, 0.5)]
    >>> [found.overall.value for found in correlations(points) if found.aim == "trainability"]
    [1.0]
    """
    # A run under two labels is one run.
    points = list({point.get("run", index): point for index, point in enumerate(points)}.values())
    return [
        Correlation(
            aim,
            rank_correlation(points, aim),
            {
                density: rank_correlation([point for point in points if point["density"] == density], aim)
                for density in densities(points)
                if density < 1.0
            },
        )
        for aim in AIMS
    ]


def correlation_table(points: Sequence[Point]) -> Table:
    """An aim a row: rank correlation with the final test accuracy, over all points and at each density, with intervals."""
    found = correlations(points)
    series = sorted({one.overall.series for one in found if one.overall.series})
    told = f"n = {' to '.join(map(str, dict.fromkeys((series[0], series[-1]))))} series" if series else ""
    columns = [told, "better", "all", *(f"{100 * density:g} %" for density in (found[0].by_density if found else ()))]
    rows = [
        [
            AIMS[one.aim][0],
            "higher" if AIMS[one.aim][1] else "lower",
            *(each.told for each in (one.overall, *one.by_density.values())),
        ]
        for one in found
    ]
    title = "rank correlation with the final test accuracy, over all and by fraction kept, and 95 % of it over series"
    return plain_table(title, columns, rows, left=2)


def rank_correlation(points: Sequence[Point], aim: str) -> Rank:
    """The rank correlation of `aim` with the test accuracy, over points that have the one and the other."""
    pairs = [
        (point["label"], value, point["test_accuracy"]) for point in points if (value := aim_of(point, aim)) is not None
    ]
    finite = [(label, a, b) for label, a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    names, aims, ends = zip(*finite, strict=True) if finite else ((), (), ())
    series = len(set(names))
    if len(finite) < FEWEST_POINTS or len(set(aims)) == 1 or len(set(ends)) == 1:
        return Rank(math.nan, None, series)
    belongs: Array = np.unique(names, return_inverse=True)[1]
    own, other = _below(aims), _below(ends)

    def of_drawn(chosen: Array) -> Array:
        """The correlation over the points of series `(..., n)`, some of which are drawn several times."""
        times = (chosen[..., None] == np.arange(series)).sum(-2)
        weights: Array = times[..., belongs]
        return _correlation(weights, own, other)

    draws = np.random.default_rng(0).integers(series, size=(RESAMPLES, series))
    interval = _interval(of_drawn(draws)) if series >= FEWEST else None
    return Rank(float(of_drawn(np.arange(series))), interval, series)


def _interval(drawn: Array) -> Interval | None:
    """The middle 95 % of what was drawn; None where some draw has no correlation."""
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return None if math.isnan(low) else Interval(float(low), float(high))


def _below(values: Sequence[float]) -> Array:
    """What point j adds to the rank of point i, at [j, i]: one if it is below, half if level."""
    column = np.array(values)[:, None]
    below: Array = (column < column.T) + 0.5 * (column == column.T)
    return below


def _correlation(weights: Array, own: Array, other: Array) -> Array:
    """Pearson's correlation of two ranks over points that count `weights` `(..., n)` times: Spearman's, of points so repeated."""
    total = weights.sum(-1, keepdims=True)
    first, second = (
        ranks - (weights * ranks).sum(-1, keepdims=True) / total for ranks in (weights @ own, weights @ other)
    )
    joint, one, two = ((weights * product).sum(-1) for product in (first * second, first**2, second**2))
    with np.errstate(invalid="ignore"):  # equal points have none
        found: Array = joint / np.sqrt(one * two)
    return found
