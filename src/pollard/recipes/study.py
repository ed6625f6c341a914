"""A study: a grid of recipes as a frozen value, and the folder that its runs share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pollard.arguments import require_one_of
from pollard.errors import InvalidInput, StoreError
from pollard.reading import has, read_toml
from pollard.recipes.folder import read_json, writable_folder, write_json
from pollard.recipes.pipeline import required
from pollard.recipes.recipe import Recipe

LEDGER = "study.json"
AXES = ("density", "seed")
RUN = {"label": str, "run": str, "series": str | None}
PUBLISHED = {"label": str, "density": float, "test_accuracy": float, "source": str}
TABLES = ("title", "aims", "recipe", "grid", "series", "published")


class Planned(NamedTuple):
    """A run of a study: its label, which says the setting too where a grid varies more than density and seed, its recipe, and its series."""

    label: str
    recipe: Recipe
    series: str


@dataclass(frozen=True, slots=True)
class Series:
    """One line in the plots: a label, and recipe fields of its own, which go before those of the grid."""

    label: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Published:
    """A figure of a paper, shown beside ours; `test_accuracy` in [0, 1]."""

    label: str
    density: float
    test_accuracy: float
    source: str


@dataclass(frozen=True, slots=True)
class Study:
    """Recipe fields that all runs share, a grid of those that vary, and one series a label; see `read`.

    >>> study = Study("how many", {"epochs": 1}, {"density": [0.1, 0.2]}, [Series("SNIP"), Series("all", {"method": "dense"})])
    >>> [(run.label, run.recipe) for run in study.runs()][:2]
    [('SNIP', Recipe(epochs=1)), ('SNIP', Recipe(density=0.2, epochs=1))]
    >>> len(study.runs())  # the dense network is the same at every density
    3
    """

    title: str
    recipe: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    series: Sequence[Series]
    published: Sequence[Published] = ()
    aims: bool = True

    @classmethod
    def read(cls, path: Path) -> Study:
        """The study in a TOML file; raises InvalidInput, naming the table and key, where it cannot be understood.

        Tables: `title`; `aims`, whether both aims of pruning are measured of each run (true), which takes minutes for large networks of
        convolutions; `[recipe]`, recipe fields of all runs; `[grid]`, a list of values for each field that varies;
        `[[series]]`, each with a `label` and recipe fields of its own, a label more than once where each has a density of its
        own; `[[published]]`, each with a `label`, a `density`,
        a `test_accuracy` and a `source`.
        """
        try:
            told = read_toml(path, "a study as TOML", "Start from studies/smoke.toml.")
        except StoreError as error:
            raise InvalidInput(error.got, error.expected, error.fix) from error
        _known(f"{path}", told, TABLES)
        grid = _table(path, "grid", told)
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise InvalidInput(f"{path}, [grid], {name} = {values!r}", "a list of values", f"Write {name} = [...].")
        study = cls(
            str(told.get("title", path.stem)),
            _table(path, "recipe", told),
            grid,
            [_series(path, table) for table in _tables(path, "series", told, [{"label": path.stem}])],
            [_published(path, table) for table in _tables(path, "published", told, [])],
            _flag(path, "aims", told),
        )
        _distinct(path, study.series)
        try:
            study.runs()
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error.got}", error.expected, error.fix) from error
        return study

    def runs(self) -> list[Planned]:
        """Every run, once a label: points of the grid that come to the same recipe are one run.

        What varies besides density and seed, and is not fixed by the series, is said in the label: points of one label and
        density differ in nothing but their seed.
        """
        found: dict[tuple[str, str], Planned] = {}
        for series in self.series:
            for point in self._points():
                recipe = Recipe.from_dict({**self.recipe, **point, **series.fields})
                varied = [f"{name} {value}" for name, value in point.items() if name not in (*AXES, *series.fields)]
                label = ", ".join([series.label, *varied])
                found.setdefault((label, recipe.digest), Planned(label, recipe, series.label))
        return list(found.values())

    def recipes(self, known: Collection[str] = ()) -> list[Recipe]:
        """What has to be run: every recipe once, a seed after the other, those first that others take weights from.

        So a study that is stopped halfway has all of its series, for half of the seeds. known: runs that are not wanted,
        by their recipes' digests; one that others take weights from is there all the same.
        """
        wanted = [run.recipe for run in self.runs() if run.recipe.digest not in known]
        first = [twin for recipe in wanted for twin in required(recipe)]
        seeds = list(dict.fromkeys(recipe.seed for recipe in wanted))
        found = list({recipe.digest: recipe for recipe in (*first, *wanted)}.values())
        return sorted(found, key=lambda recipe: seeds.index(recipe.seed))

    def _points(self) -> Iterator[dict[str, Any]]:
        for values in product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def save(self, out: Path) -> None:
        """Write the study's ledger into `out`, so that a report knows what was planned.

        Raises StoreError where that cannot be written, InvalidInput where `out` is of a study of another title.
        """
        planned = self.runs()
        runs = [
            {"label": run.label, "series": run.series, "run": run.recipe.digest, "recipe": run.recipe.to_dict()}
            for run in planned
        ]
        told = {"title": self.title, "published": [asdict(entry) for entry in self.published], "runs": runs}
        told["first"] = list(dict.fromkeys(twin.digest for run in planned for twin in required(run.recipe)))
        writable_folder(out)
        if (out / LEDGER).exists() and (other := read_ledger(out)["title"]) != self.title:
            raise InvalidInput(
                f"{out}, which holds the study {other!r}",
                f"a folder of its own for {self.title!r}",
                f"Give another --out, or remove {out / LEDGER}: runs stay.",
            )
        write_json(out / LEDGER, told)


def read_ledger(out: Path) -> dict[str, Any]:
    """The ledger in `out`: title, published figures, runs, and those run first; raises StoreError where there is none."""
    if not (out / LEDGER).exists():
        raise StoreError(f"{out} without {LEDGER}", "the folder of a study", "Run: pollard study FILE --out DIR.")
    told = read_json(out / LEDGER)
    parts: dict[str, Callable[[object], bool]] = {
        "runs": lambda run: has(run, RUN),
        "published": lambda entry: has(entry, PUBLISHED),
        "first": lambda digest: isinstance(digest, str),
    }
    sound = all(isinstance(told.get(name, []), list) and all(map(of, told.get(name, []))) for name, of in parts.items())
    if not isinstance(told.get("title"), str) or not sound or "runs" not in told or "published" not in told:
        raise StoreError(f"{out / LEDGER}, which is no ledger", "what pollard study writes", "Run the study again.")
    return told


def _flag(path: Path, name: str, told: Mapping[str, Any]) -> bool:
    value = told.get(name, True)
    if not isinstance(value, bool):
        raise InvalidInput(f"{path}, {name} = {value!r}", "true or false", f"Write {name} = false, or leave it out.")
    return value


def _table(path: Path, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The table `name` of a file; raises InvalidInput where it is something else."""
    value = told.get(name, {})
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}, {name} = {value!r}", f"a table [{name}]", f"Write [{name}] and fields below it.")
    return value


def _tables(path: Path, name: str, told: Mapping[str, Any], default: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tables `name` of a file, `default` where it has none; raises InvalidInput where they are something else."""
    value = told.get(name, default)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value) or not (value or not default):
        raise InvalidInput(
            f"{path}, {name} = {value!r}", f"tables [[{name}]]", f"Write [[{name}]] and fields below it."
        )
    return value


def _distinct(path: Path, series: Sequence[Series]) -> None:
    """Raises InvalidInput where two series of a label share a density: their runs would be averaged as if they were seeds."""
    for label in dict.fromkeys(one.label for one in series):
        own = [one.fields.get("density") for one in series if one.label == label]
        if len(own) > 1 and any(each is None or own.count(each) > 1 for each in own):
            fix = "Rename one, or give each a density of its own."
            raise InvalidInput(f"{path}, two series labelled {label!r}", "a label of its own for each", fix)


def _series(path: Path, table: Mapping[str, Any]) -> Series:
    known = [entry.name for entry in fields(Recipe)]
    _known(f"{path}, [[series]]", table, ("label", *known))
    if "label" not in table:
        raise InvalidInput(f"{path}, a [[series]] of {dict(table)}", "a label", 'Add label = "...".')
    return Series(str(table["label"]), {name: value for name, value in table.items() if name != "label"})


def _published(path: Path, table: Mapping[str, Any]) -> Published:
    names = tuple(entry.name for entry in fields(Published))
    _known(f"{path}, [[published]]", table, names)
    if missing := [name for name in names if name not in table]:
        raise InvalidInput(f"{path}, a [[published]] without {missing[0]}", ", ".join(names), "Say all four.")
    for name in ("density", "test_accuracy"):
        value = table[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InvalidInput(f"{path}, [[published]], {name} = {value!r}", "a fraction in [0, 1]", "98 % is 0.98.")
    return Published(str(table["label"]), float(table["density"]), float(table["test_accuracy"]), str(table["source"]))


def _known(where: str, table: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in table:
        require_one_of(f"{where}:", name, names, "Leave it out.")
