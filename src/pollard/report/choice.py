"""Settings of a series chosen on held-out training examples, and what test data, which had no say, make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from pollard.report.accuracy import Point, Spread, accuracy_table, densities
from pollard.report.render import plain_table

VALIDATION = "validation_accuracy"


@dataclass(frozen=True, slots=True)
class Choice:
    """Of the settings of one series at one density that with the highest mean validation accuracy.

    label: its own. candidates: how many there were. validation, test: accuracies of it over the seeds that all of them have.
    """

    series: str
    density: float
    label: str
    candidates: int
    validation: Spread
    test: Spread


def choices(points: Sequence[Point]) -> list[Choice]:
    """One of each series and density of several settings; of equal ones the first. Points without a validation accuracy do not compete.

    Settings are compared over the seeds that all of them have, so that none of a study under way wins by the seeds it lacks.

    >>> runs = [("SNIP", 0.1, 0.8, 0.7), ("SNIP", 0.2, 0.7, 0.9)]
    >>> points = [
    ...     {"series": name, "label": f"{name}, lr {lr}", "density": 0.1, "seed": 0, "validation_accuracy": held_out, "test_accuracy": test}
    ...     for name, lr, held_out, test in runs
    ... ]
    >>> [(one.label, one.test.mean) for one in choices(points)]
    [('SNIP, lr 0.1', 0.7)]
    """
    found: dict[tuple[str, float], dict[str, list[Point]]] = {}
    for point in points:
        if point.get(VALIDATION) is not None:
            own = found.setdefault((_series(point), point["density"]), {})
            own.setdefault(point["label"], []).append(point)
    compared = {cell: _shared(own) for cell, own in found.items()}
    return [_best(series, density, own) for (series, density), own in compared.items() if len(own) > 1]


def choice_table(points: Sequence[Point]) -> Table:
    """A series a row, a density a column: what was chosen, and its test accuracy in percent."""
    found = {(one.series, one.density): one for one in choices(points)}
    columns = [density for density in densities(points) if any(density == own for _, own in found)]
    rows = [
        [name, *(_told(found[name, density]) if (name, density) in found else "" for density in columns)]
        for name in dict.fromkeys(name for name, _ in found)
    ]
    title = "chosen by validation accuracy, and its test accuracy in percent"
    return plain_table(title, ["", *(f"{100 * density:g} %" for density in columns)], rows)


def validation_tables(points: Sequence[Point]) -> list[Table]:
    """What validation data say: accuracies, and where a series has several settings, the choice of one; none where nothing was held out."""
    validated = [point for point in points if point.get(VALIDATION) is not None]
    if not validated:
        return []
    chosen = [choice_table(validated)] if choices(validated) else []
    return [accuracy_table(validated, "", VALIDATION), *chosen]


def _shared(own: dict[str, list[Point]]) -> dict[str, list[Point]]:
    """The points of each setting, of the seeds that all settings have; none where they share no seed."""
    seeds = set.intersection(*({point["seed"] for point in runs} for runs in own.values()))
    return {label: [point for point in runs if point["seed"] in seeds] for label, runs in own.items() if seeds}


def _best(series: str, density: float, own: dict[str, list[Point]]) -> Choice:
    spreads = {label: Spread.of(point[VALIDATION] for point in runs) for label, runs in own.items()}
    label = max(spreads, key=lambda each: spreads[each].mean)
    test = Spread.of(point["test_accuracy"] for point in own[label])
    return Choice(series, density, label, len(own), spreads[label], test)


def _told(choice: Choice) -> str:
    setting = choice.label.removeprefix(f"{choice.series}, ")
    return f"{setting}: {choice.test.percent()}"


def _series(point: Point) -> str:
    """The series that a setting is of; points of before say only their label."""
    return str(point.get("series", point["label"]))
