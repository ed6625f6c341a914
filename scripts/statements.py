"""What carries each measured figure in the sentences of README.md, benchmarks/README.md and docs/: a table of page, sentence, file, expression and number.

A marker stands behind what it speaks for, which goes back to the marker before it, or to where its paragraph, list item or cell begins:

    SNIP loses 0.3 points when it is shuffled. <!-- from studies/results/ablations.json: lead("SNIP, shuffled", "SNIP", 0.1) -->
    Published is 98.4. <!-- source: Lee et al. 2019 -->
    Momentum is 0.9. <!-- given: the recipe -->

Several in a row speak for the same text. Behind a table whose cells have no marker, in a paragraph of its own, it speaks for the whole table.

Expressions, parted by `;`, are Python over the file: `record` is its content, `rows(...)` and `row(...)` are those of its rows that have these
fields, `differ(...)` says whether the 95 % interval of what lies between two lists of values by seed leaves out zero, and of a study there are the
methods of `Study`, below. Each value must stand in the sentence, rounded as it is there, its sign where it has
one; what is no number must be true. And each number with a decimal point must be such a value, an argument of an expression (a density, as a fraction
or in percent), or under `source:` or `given:`; but in notes of decisions, which say what was measured when it was decided.

    python scripts/statements.py [--check] [PAGE ...]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from pollard.report.accuracy import Spread
from pollard.report.choice import choices
from pollard.report.comparison import after, differences
from pollard.report.correlation import rank_correlation
from pollard.report.significance import Difference, paired

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "benchmarks/README.md", "docs/**/*.md")
NOT_HELD = "docs/decisions/"
MARKER = re.compile(r"<!-- (?P<kind>from|source|given)(?:(?<=from) (?P<file>[\w./-]+))?: (?P<told>.+?) -->", re.DOTALL)
# What says nothing by itself: code, tables made from records, headings, pictures, targets of links, code spans.
SILENT = re.compile(
    r"^```.*?^```|^    \S[^\n]*|<!-- figures:.*?<!-- /figures -->|^#[^\n]*|!\[[^\]]*\]\([^)]*\)|(?<=\])\([^)]*\)|`[^`\n]*`",
    re.DOTALL | re.MULTILINE,
)
# A table that a marker follows and none is in: one text.
TABLE = re.compile(r"(?<!\|\n)(?:^\|(?:(?!<!--)[^\n])*\|\n)+\s*(?=<!-- (?:from|source|given)\b)", re.MULTILINE)
BREAK = re.compile(r"\n\s*\n|\n(?=\s*\* )|\|")
NUMBER = re.compile(r"(?<![\w.])(?P<sign>[+-])?(?P<digits>\d[\d,]*(?:\.\d+)?)(?![\w]|\.\d)")


class Study:
    """What can be asked of the points of a study; accuracies in percent, differences in points."""

    def __init__(self, points: Sequence[Mapping[str, Any]]) -> None:
        self.points = points

    def accuracy(self, label: str, density: float) -> float:
        """The mean test accuracy."""
        return 100 * self._mean(label, density, "test_accuracy")

    def half(self, label: str, density: float) -> float | None:
        """Half of its interval."""
        found = Spread.of(point["test_accuracy"] for point in self._cell(label, density)).half
        return None if found is None else 100 * found

    def chosen(self, series: str, density: float) -> str:
        """The label of the setting of a series that has the highest validation accuracy."""
        (found,) = [one for one in choices(self.points) if (one.series, one.density) == (series, density)]
        return found.label

    def loss(self, label: str, density: float) -> float:
        """The mean training loss of the last epoch."""
        return self._mean(label, density, "train_loss")

    def aim(self, name: str, label: str, density: float) -> float:
        """The mean of an aim."""
        return mean(point["aims"][name] for point in self._cell(label, density))

    def after(self, epochs: int) -> Study:
        """The same so many epochs into the last training; of 0 right after pruning."""
        return Study(after(self.points, epochs))

    def of_seeds(self, *seeds: int) -> Study:
        """The same of these seeds alone."""
        return Study([point for point in self.points if point["seed"] in seeds])

    def lead(self, label: str, against: str, density: float) -> float:
        """How far the test accuracy of `label` is above that of `against`, over the seeds of both."""
        return 100 * self._pair(label, against, density).mean

    def within(self, label: str, against: str, density: float) -> list[float]:
        """The ends of the interval of that."""
        student = self._pair(label, against, density).student
        assert student is not None
        return [100 * end for end in student]

    def shows(self, label: str, against: str, density: float) -> bool:
        """Whether that interval leaves out zero."""
        student = self._pair(label, against, density).student
        return student is not None and not student.holds(0.0)

    def rank(self, aim: str, density: float | None = None) -> float:
        """The rank correlation of an aim with the test accuracy, over all or at one density."""
        return self._rank(aim, density).value

    def rank_within(self, aim: str, density: float | None = None) -> list[float]:
        """The ends of its interval."""
        return list(self._rank(aim, density).interval or ())

    def _rank(self, aim: str, density: float | None) -> Any:
        points = {point["run"]: point for point in self.points if density in (None, point["density"])}
        return rank_correlation(list(points.values()), aim)

    def _pair(self, label: str, against: str, density: float) -> Difference:
        two = [point for point in self.points if point["label"] in (label, against)]
        (found,) = [one for one in differences(two, against) if one.label == label and one.density == density]
        return found

    def _cell(self, label: str, density: float) -> list[Mapping[str, Any]]:
        return [point for point in self.points if (point["label"], point["density"]) == (label, density)]

    def _mean(self, label: str, density: float, name: str) -> float:
        return mean(point[name] for point in self._cell(label, density))


@dataclass(frozen=True)
class Marker:
    """What carries a text: `kind` is from, source or given; `told` the expressions over `file`, or words."""

    kind: str
    file: str
    told: str

    def values(self) -> dict[str, list[float]]:
        """The numbers of each expression; none of what is not computed."""
        if self.kind != "from":
            return {}
        names = {"__builtins__": BUILTINS, **names_of(json.loads((ROOT / self.file).read_text(encoding="utf-8")))}
        found = {each: self._value(each, names) for each in map(str.strip, self.told.split(";"))}
        return {each: [value] if isinstance(value, int | float) else list(value) for each, value in found.items()}

    def _value(self, expression: str, names: dict[str, Any]) -> Any:
        try:
            return eval(expression, names)  # noqa: S307  our own pages
        except Exception as error:
            error.add_note(f"in {self.file}: {expression}")
            raise


@dataclass(frozen=True)
class Statement:
    """Text and the markers behind it, none where nothing carries it."""

    page: str
    line: int
    text: str
    markers: tuple[Marker, ...] = ()

    def wrong(self) -> list[str]:
        """What does not hold: values that the text does not have, numbers of the text that nothing carries."""
        numbers = list(NUMBER.finditer(self.text))
        # The same expression may be asked of several files.
        values = [(name, own) for marker in self.markers for name, own in marker.values().items()]
        lost = [
            f"{each} is {value if isinstance(value, bool) else format(value, '.4g')}, which the text does not say"
            for each, own in values
            for value in own
            if not (value if isinstance(value, bool) else any(tells(match, value) for match in numbers))
        ]
        if any(marker.kind != "from" for marker in self.markers):
            return lost
        arguments = [float(each) for marker in self.markers for each in re.findall(r"\d+\.\d+", marker.told)]
        known = [value for _, own in values for value in own] + arguments + [100 * each for each in arguments]
        free = [match[0] for match in numbers if "." in match["digits"] and not any(tells(match, v) for v in known)]
        return lost + [f"nothing carries {each}" for each in free]


BUILTINS = {each.__name__: each for each in (abs, all, any, len, max, mean, min, range, sum, zip)}


def names_of(record: Any) -> dict[str, Any]:
    """What an expression can name: the record, and where it is a list, what can be asked of it."""

    def rows(**fields: Any) -> list[Any]:
        listed = record if isinstance(record, list) else record["rows"]
        return [each for each in listed if all(each.get(name) == value for name, value in fields.items())]

    def row(**fields: Any) -> Any:
        (found,) = rows(**fields)
        return found

    def differ(first: Sequence[float], second: Sequence[float]) -> bool:
        student = paired("", "", 1.0, dict(enumerate(first)), dict(enumerate(second))).student
        return student is not None and not student.holds(0.0)

    found = {"record": record, "row": row, "rows": rows, "differ": differ}
    if isinstance(record, list) and record and "label" in record[0] and "test_accuracy" in record[0]:
        study = Study(record)
        found |= {name: getattr(study, name) for name in vars(Study) if not name.startswith("_")}
    return found


def tells(match: re.Match[str], value: float) -> bool:
    """Whether a number of a text is `value`, rounded to its digits; without a sign it may be either."""
    digits = match["digits"].replace(",", "")
    places = len(digits.partition(".")[2])
    asked = float(digits) if match["sign"] in (None, "+") else -float(digits)
    given = value if match["sign"] else abs(value)
    return abs(given - asked) <= 0.5 * 10**-places + 1e-9


def statements(page: str, text: str) -> list[Statement]:
    """The statements of a page in order, those that nothing carries among them."""
    said = SILENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    markers = list(MARKER.finditer(said))
    hidden = MARKER.sub(lambda match: re.sub(r"[^\n]", "\0", match[0]), said)
    tables = [match.span() for match in TABLE.finditer(said)]
    breaks = [match.start() for match in BREAK.finditer(hidden)]
    breaks = [at for at in breaks if not any(start < at < end for start, end in tables)]
    ends = sorted({0, len(text), *(match.end() for match in markers), *breaks})
    by_end = {match.end(): match for match in markers}
    found: list[Statement] = []
    for start, end in pairwise(ends):
        match = by_end.get(end)
        stop = match.start() if match else end
        own = " ".join(said[start:stop].strip("|\n* ").split())
        carried = (Marker(match["kind"], match["file"] or "", " ".join(match["told"].split())),) if match else ()
        if own:
            found.append(Statement(page, text.count("\n", 0, stop) + 1, own, carried))
        elif carried and found:  # several markers in a row speak for the same text
            found[-1] = replace(found[-1], markers=found[-1].markers + carried)
    return found


def of_pages(pages: Sequence[str] = ()) -> list[Statement]:
    """The statements of these pages, by default of all."""
    chosen = pages or [str(path.relative_to(ROOT)) for each in PAGES for path in sorted(ROOT.glob(each))]
    return [each for page in chosen for each in statements(page, (ROOT / page).read_text(encoding="utf-8"))]


def complaints(found: Sequence[Statement]) -> list[str]:
    """What does not hold, a line each; of notes of decisions what has a marker."""
    asked = [each for each in found if each.markers or not each.page.startswith(NOT_HELD)]
    return [f"{each.page}:{each.line}: {told}: {each.text[-70:]}" for each in asked for told in each.wrong()]


def main() -> int:
    """Print the table; exit status 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="print only what does not hold")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="pages, as README.md (default: all)")
    given = parser.parse_args()
    found = of_pages(given.pages)
    for each in [] if given.check else [each for each in found if each.markers]:
        print(f"{each.page}:{each.line}: {each.text}")
        for marker in each.markers:
            for name, values in (marker.values() or {marker.told: []}).items():
                print(f"    {marker.file or marker.kind}: {name}", *(f"= {value:.6g}" for value in values))
    wrong = complaints(found)
    print(*wrong, sep="\n", end="\n" * bool(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
