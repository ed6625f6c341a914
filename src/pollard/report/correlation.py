"""Which aim of pruning goes with the accuracy that training ends at: rank correlations over the points of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from scipy.stats import spearmanr

from pollard.report.accuracy import Point, densities
from pollard.report.render import plain_table

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
FEWEST = 4


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation of an aim with the final test accuracy.

    overall: over all points; by_density: over those of one density. Not a number where there are fewer than four points,
    or all are equal.
    """

    aim: str
    overall: float
    by_density: dict[float, float]


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

    >>> points = [{"density": 0.1, "test_accuracy": a, "trainability": a * a} for a in (0.2, 0.3, 0.4, 0.5)]
    >>> [found.overall for found in correlations(points) if found.aim == "trainability"]
    [1.0]
    """
    # A run under two labels is one run.
    points = list({point.get("run", index): point for index, point in enumerate(points)}.values())
    return [
        Correlation(
            aim,
            _rank_correlation(points, aim),
            {
                density: _rank_correlation([point for point in points if point["density"] == density], aim)
                for density in densities(points)
                if density < 1.0
            },
        )
        for aim in AIMS
    ]


def correlation_table(points: Sequence[Point]) -> Table:
    """An aim a row: rank correlation with the final test accuracy, over all points and at each density."""
    found = correlations(points)
    columns = ["", "better", "all", *(f"{100 * density:g} %" for density in (found[0].by_density if found else ()))]
    rows = [
        [
            AIMS[one.aim][0],
            "higher" if AIMS[one.aim][1] else "lower",
            *(_told(value) for value in (one.overall, *one.by_density.values())),
        ]
        for one in found
    ]
    return plain_table(
        "rank correlation with the final test accuracy, over all and by fraction kept", columns, rows, left=2
    )


def _rank_correlation(points: Sequence[Point], aim: str) -> float:
    pairs = [(value, point["test_accuracy"]) for point in points if (value := aim_of(point, aim)) is not None]
    finite = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if len(finite) < FEWEST or any(len(set(column)) == 1 for column in zip(*finite, strict=True)):
        return math.nan
    return float(spearmanr(*zip(*finite, strict=True)).statistic)


def _told(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"
