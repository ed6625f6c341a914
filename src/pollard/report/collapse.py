"""Layer collapse: down to which density a method leaves something of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from pollard.report.accuracy import Point, densities, labels
from pollard.report.render import plain_table


@dataclass(frozen=True, slots=True)
class Collapse:
    """Where the layers of one series collapse.

    least: the lowest density of the study at which, as at all above it, no run of the series has an empty layer; None
    where there is none. empty: for each density of the series, the share of its runs with an empty layer.
    """

    label: str
    least: float | None
    empty: dict[float, float]

    @property
    def critical_compression(self) -> float | None:
        """`1 / least`: the highest compression without collapse. Source: Tanaka et al. 2020, section 3.

        >>> Collapse("a", 0.01, {0.1: 0.0, 0.01: 0.0, 0.001: 0.5}).critical_compression
        100.0
        """
        return None if self.least is None else 1 / self.least


def collapses(points: Sequence[Point]) -> list[Collapse]:
    """One for each series that prunes; a layer is empty when its density is 0.

    >>> points = [{"label": "a", "density": d, "densities": {"fc": d - 0.1}} for d in (0.3, 0.2, 0.1)]
    >>> collapses(points)
    [Collapse(label='a', least=0.2, empty={0.3: 0.0, 0.2: 0.0, 0.1: 1.0})]
    """
    pruned = [point for point in points if point["density"] < 1.0]
    return [_collapse(label, [point for point in pruned if point["label"] == label]) for label in labels(pruned)]


def collapse_table(points: Sequence[Point]) -> Table:
    """A series a row: the share of runs with an empty layer at each density, and the highest compression without one."""
    columns = ["", "intact down to", "compression", *(f"{100 * d:g} %" for d in densities(points) if d < 1.0)]
    rows = [
        [
            one.label,
            "-" if one.least is None else f"{100 * one.least:g} %",
            "-" if one.critical_compression is None else f"{one.critical_compression:,.0f}x",
            *(f"{one.empty[d]:.0%}" if d in one.empty else "" for d in densities(points) if d < 1.0),
        ]
        for one in collapses(points)
    ]
    return plain_table("runs with an empty layer, by fraction kept", columns, rows)


def _collapse(label: str, points: Sequence[Point]) -> Collapse:
    empty = {}
    for density in densities(points):
        runs = [point for point in points if point["density"] == density]
        empty[density] = sum(min(point["densities"].values()) == 0 for point in runs) / len(runs)
    least = None
    for density, share in empty.items():
        if share > 0:
            break
        least = density
    return Collapse(label, least, empty)
