"""Sparsity against accuracy: the points of a study as mean and spread over seeds, in tables and files.

A point is a run: a mapping with `label`, `method`, `density` (asked), `seed`, `test_accuracy` and more.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from rich.table import Table

from pollard.report.render import markdown, plain_table
from pollard.report.significance import FEWEST, half_width

Point = Mapping[str, Any]
FORMULAS = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # the last ones are full-width


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean of some values, and half of its 95 % interval by Student: None for fewer than three values, which have none.

    >>> Spread.of([1.0, 3.0])
    Spread(mean=2.0, half=None, count=2)
    """

    mean: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = list(values)
        return cls(mean(found), half_width(found), len(found))

    def percent(self) -> str:
        """As text, in percent.

        >>> Spread.of([0.9, 0.92, 0.91]).percent(), Spread.of([0.5, 0.6]).percent()
        ('91.00 ± 2.48', '55.00')
        """
        tail = "" if self.half is None else f" ± {100 * self.half:.2f}"
        return f"{100 * self.mean:.2f}{tail}"

    def counted(self) -> str:
        """The same, with how many values it is of.

        >>> Spread.of([0.5, 0.6]).counted()
        '55.00, n = 2'
        """
        return f"{self.percent()}, n = {self.count}"


def labels(points: Sequence[Point]) -> list[str]:
    """The series, in the order of their first points."""
    return list(dict.fromkeys(point["label"] for point in points))


def densities(points: Sequence[Point]) -> list[float]:
    """The densities that were asked for, from dense to sparse."""
    return sorted({point["density"] for point in points}, reverse=True)


def cells(points: Sequence[Point], name: str = "test_accuracy") -> dict[tuple[str, float], Spread]:
    """The spread of a figure over seeds, by label and density; points that do not have it are left out.

    >>> cells([{"label": "a", "density": 0.1, "test_accuracy": 0.5}])
    {('a', 0.1): Spread(mean=0.5, half=None, count=1)}
    """
    found: dict[tuple[str, float], list[float]] = {}
    for point in points:
        if point.get(name) is not None:
            found.setdefault((point["label"], point["density"]), []).append(point[name])
    return {key: Spread.of(values) for key, values in found.items()}


def accuracy_table(points: Sequence[Point], title: str, name: str = "test_accuracy") -> Table:
    """Test accuracy in percent, or that of another `name`, a row a series and a column a density: mean and 95 % interval over seeds."""
    columns, rows = accuracy_grid(points, name=name)
    return plain_table(f"{title}\n{name.replace('_', ' ')} in percent by fraction kept".lstrip(), columns, rows)


def markdown_table(points: Sequence[Point], published: Sequence[Mapping[str, Any]] = ()) -> str:
    """The same in Markdown; a published figure stands beside ours, in brackets."""
    return markdown(*accuracy_grid(points, published))


def csv_text(points: Sequence[Point]) -> str:
    """One line a point, of all figures that are single values; fields of the recipe follow as `recipe.<field>`.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, as OWASP advises.
    """
    rows = [{_plain(name): _plain(value) for name, value in _flat(point).items()} for point in points]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _plain(cell: Any) -> Any:
    """`cell`, unless it is text that a spreadsheet would take for a formula; numbers stay as they are.

    >>> _plain("=1+2"), _plain("snip"), _plain(-0.5)
    ("'=1+2", 'snip', -0.5)
    """
    if not isinstance(cell, str):
        return cell
    # A carriage return would end the line for some readers, and is not quoted by the writer of these.
    return ("'" if cell.startswith(FORMULAS) else "") + cell.replace("\r", " ")


def _flat(point: Point) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in point.items():
        if isinstance(value, Mapping):
            row |= {f"{name}.{inner}": entry for inner, entry in value.items()}
        elif value is not None and not isinstance(value, list):
            row[name] = value
    return row


def accuracy_grid(
    points: Sequence[Point], published: Sequence[Mapping[str, Any]] = (), name: str = "test_accuracy"
) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a table of test accuracies, or of another `name`, a series a row; published figures stand in brackets.

    The first column is headed by what is told: of how many seeds, and that ± is half of the 95 % interval.
    """
    found = cells(points, name)
    beside = {(entry["label"], entry["density"]): f" ({100 * entry['test_accuracy']:.2f})" for entry in published}
    most = max((spread.count for spread in found.values()), default=0)
    told = {cell: spread.percent() if spread.count == most else spread.counted() for cell, spread in found.items()}
    columns, rows = grid(points, {cell: text + beside.get(cell, "") for cell, text in told.items()})
    return [seeds_told(found.values()), *columns[1:]], rows


def grid(points: Sequence[Point], told: Mapping[tuple[str, float], str]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a table: a series a row, a density a column, and what is `told` of both; headed by the number of seeds."""
    columns = densities(points)
    rows = [[label, *(told.get((label, density), "") for density in columns)] for label in labels(points)]
    counts = [spread.count for spread in cells(points).values()]
    return [_counted(counts), *(f"{100 * density:g} %" for density in columns)], rows


def _counted(counts: Sequence[int]) -> str:
    """Of how many seeds figures are.

    >>> _counted([3, 3]), _counted([1, 3, 2]), _counted([])
    ('n = 3', 'n = 1 to 3', '')
    """
    return f"n = {' to '.join(map(str, sorted({min(counts), max(counts)})))}" if counts else ""


def seeds_told(spreads: Iterable[Spread]) -> str:
    """Of how many seeds figures are, and what stands behind ±.

    >>> seeds_told([Spread.of([0.1, 0.2, 0.3])]), seeds_told([Spread.of([0.1]), Spread.of([0.1, 0.2])]), seeds_told([])
    ('± 95 %, n = 3', 'n = 1 to 2: no interval', 'no run is finished')
    """
    counts = [spread.count for spread in spreads]
    if not counts:
        return "no run is finished"
    return f"± 95 %, {_counted(counts)}" if max(counts) >= FEWEST else f"{_counted(counts)}: no interval"
