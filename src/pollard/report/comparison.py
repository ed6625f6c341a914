"""Every series of a study beside every other, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from rich.table import Table

from pollard.arguments import require_one_of
from pollard.report.accuracy import Point, labels
from pollard.report.render import plain_table
from pollard.report.significance import Difference, Interval, paired

Runs = dict[float, dict[int, float]]


def differences(points: Sequence[Point], against: str | None = None) -> list[Difference]:
    """Every pair of series at every density that they share, the one that comes later less the one before it.

    against: only the pairs of this series, all others less it. A series that was never pruned is compared at every density.

    >>> points = [{"label": each, "density": 0.1, "seed": 0, "test_accuracy": 0.5} for each in "abc"]
    >>> [(one.label, one.against) for one in differences(points)]
    [('b', 'a'), ('c', 'a'), ('c', 'b')]
    >>> [(one.label, one.against) for one in differences(points, "b")]
    [('a', 'b'), ('c', 'b')]
    """
    found: dict[str, dict[float, dict[int, float]]] = {}
    for point in points:
        found.setdefault(point["label"], {}).setdefault(point["density"], {})[point["seed"]] = point["test_accuracy"]
    pairs = combinations(found, 2) if against is None else ((against, label) for label in found if label != against)
    return [
        paired(label, base, density, mine, theirs)
        for base, label in pairs
        for density, mine, theirs in _shared(found[label], found[base])
        if mine.keys() & theirs.keys()
    ]


def after(points: Sequence[Point], epochs: int) -> list[Point]:
    """The points as they were so many epochs into their last training; of 0 right after pruning, where that was measured, on training examples.

    >>> point = {"test_accuracy": 0.9, "curve": [0.7, 0.9], "aims": {"accuracy": 0.3}}
    >>> [after([point], epochs)[0]["test_accuracy"] for epochs in (0, 1, 2)], after([point], 3)
    ([0.3, 0.7, 0.9], [])
    """
    curves = [(point, [(point["aims"] or {}).get("accuracy"), *point["curve"]]) for point in points]
    reached = [(point, curve[epochs]) for point, curve in curves if epochs < len(curve)]
    return [{**point, "test_accuracy": accuracy} for point, accuracy in reached if accuracy is not None]


def difference_table(points: Sequence[Point], against: str) -> Table:
    """A series a row, a density a column: how far it is above `against`, with half of Student's interval; raises InvalidInput for no series of that name."""
    require_one_of("series", against, labels(points), "Give a label of the study.")
    found = differences(points, against)
    told = {(one.label, one.density): one.told for one in found}
    densities = sorted({one.density for one in found}, reverse=True)
    columns = ["", *(f"{100 * density:g} %" for density in densities)]
    rows = [[each, *(told.get((each, d), "") for d in densities)] for each in labels(points) if each != against]
    title = f"above {against}, in points, seed by seed; * where the 95 % interval does not hold zero,"
    return plain_table(f"{title}\nas by chance one of twenty would: there are {len(found)}", columns, rows)


def difference_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every pair of series and density as one flat row: means and intervals as fractions, None for no interval."""
    return [
        {
            "label": one.label,
            "against": one.against,
            "density": one.density,
            "n": len(one.seeds),
            "difference": one.mean,
            **_ends("student", one.student),
            **_ends("bootstrap", one.bootstrap),
            "p": one.p,
        }
        for one in differences(points)
    ]


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _shared(first: Runs, second: Runs) -> list[tuple[float, dict[int, float], dict[int, float]]]:
    """The runs of two series side by side, by density; those of a dense one beside each density of the other."""
    pruned = sorted({*first, *second} - {1.0}, reverse=True) or [1.0]
    sides = ((density, _at(first, density), _at(second, density)) for density in pruned)
    return [(density, mine, theirs) for density, mine, theirs in sides if mine and theirs]


def _at(runs: Runs, density: float) -> dict[int, float]:
    return runs[1.0] if runs.keys() == {1.0} else runs.get(density, {})
