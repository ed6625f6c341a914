"""From points to the page: data as JSON, the plotting library, style and script, all in one file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from statistics import mean
from string import Template
from typing import Any

from pollard.errors import InvalidInput
from pollard.pruning.citations import cited
from pollard.report.accuracy import Point, accuracy_grid, cells, densities, labels
from pollard.report.choice import validation_tables
from pollard.report.collapse import collapse_table
from pollard.report.comparison import difference_rows
from pollard.report.correlation import AIMS, aim_of, correlation_table
from pollard.report.render import texts
from pollard.report.significance import FEWEST, quantile
from pollard.report.sources import sources

COLOURS = (
    "#1b7f4d", "#3b6ea8", "#c2682f", "#8a4fa3", "#b3942b", "#c0395b", "#2b9aa0", "#6b7780", "#7a5a3a", "#5b5bd6",
    "#4f8a10", "#d07ab0",
)  # fmt: skip
DASHES = ("solid", "dash", "dot")
DENSE_COLOUR = "#1d2a33"
COSTS = {
    "seconds_per_step": "seconds a training step",
    "held_bytes": "bytes of weights, indices, gradients and optimizer",
    "peak_rss_bytes": "peak memory of the process, bytes",
    "explored_rate": "fraction of weights ever trained",
    "training_flops": "multiply-adds of training, of dense training's",
    "total_flops": "multiply-adds of all phases, in epochs of dense training",
    "dead_neurons": "outputs that keep no weight",
}


def study_page(title: str, points: Sequence[Point], published: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page as one HTML text, some five megabytes of it the plotting library; raises InvalidInput without plotly or points."""
    if not points:
        raise InvalidInput("a study without a finished run", "at least one", "Run: pollard study FILE --out DIR.")
    here = files("pollard.report.page")
    return Template((here / "page.html").read_text("utf-8")).substitute(
        title=escape(title),
        subtitle=escape(_subtitle(points)),
        style=(here / "page.css").read_text("utf-8"),
        script=(here / "page.js").read_text("utf-8"),
        plotly=_plotly(),
        data=_json(page_data(points, published)),
        table=_html_table(*accuracy_grid(points, published)),
        validation="".join(
            f"<p>{escape(str(each.title))}</p>{_html_table(*texts(each))}" for each in validation_tables(points)
        ),
        collapse=_html_table(*texts(collapse_table(points))),
        correlations=_html_table(*texts(correlation_table(points))),
        bibtex=escape(_bibtex(points) or "Nothing to cite: no method is published."),
    )


def _bibtex(points: Sequence[Point]) -> str:
    return cited(sorted({key for point in points for key in sources(point["recipe"])}))


def page_data(points: Sequence[Point], published: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What the page draws, as JSON holds it."""
    names = labels(points)
    return {
        "series": [
            {"label": name, "colour": _colour(points, name, index), "dash": DASHES[index // len(COLOURS) % len(DASHES)]}
            for index, name in enumerate(names)
        ],
        "densities": densities(points),
        "published": [one for one in published if one["label"] in names],
        "accuracy": _spreads(points, "test_accuracy"),
        "layers": _layers(points),
        "aims": {aim: text for aim, (text, _) in AIMS.items()},
        "differences": difference_rows(points),
        "quantiles": {n: quantile(n) for n in range(FEWEST, len({point["seed"] for point in points}) + 1)},
        "points": [
            {name: point[name] for name in ("label", "density", "seed", "test_accuracy", "curve")}
            | {aim: aim_of(point, aim) for aim in AIMS}
            for point in points
        ],
        "curves": _curves(points),
        "costs": {
            name: {"title": text, "series": _spreads([*map(_with_bytes, points)], name)} for name, text in COSTS.items()
        },
    }


def _colour(points: Sequence[Point], label: str, index: int) -> str:
    methods = {point["method"] for point in points if point["label"] == label}
    return DENSE_COLOUR if methods == {"dense"} else COLOURS[index % len(COLOURS)]


def _with_bytes(point: Point) -> Point:
    return {**point, "held_bytes": sum(point["bytes"].values())}


def _spreads(points: Sequence[Point], name: str) -> list[dict[str, Any]]:
    """Mean and spread of a figure, a series an entry."""
    found = cells(points, name)
    entries = []
    for label in labels(points):
        own = {density: found[label, density] for density in densities(points) if (label, density) in found}
        entries.append({
            "label": label,
            "densities": list(own),
            "mean": [spread.mean for spread in own.values()],
            "half": [spread.half for spread in own.values()],
            "count": [spread.count for spread in own.values()],
        })  # fmt: skip
    return entries


def _groups(points: Sequence[Point]) -> dict[tuple[str, float], list[Point]]:
    """Points of the same label and density."""
    groups: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point["label"], point["density"]), []).append(point)
    return groups


def _layers(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "density": density,
            "densities": {
                layer or "(root)": mean(point["densities"][layer] for point in group) for layer in group[0]["densities"]
            },
        }
        for (label, density), group in _groups(points).items()
    ]


def _curves(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The mean test accuracy after each epoch; epochs count from where the last training starts."""
    curves = []
    for (label, density), group in _groups(points).items():
        length = min(len(point["curve"]) for point in group)
        averaged = [mean(point["curve"][epoch] for point in group) for epoch in range(length)]
        curves.append({"label": label, "density": density, "epochs": list(range(1, length + 1)), "mean": averaged})
    return curves


def _subtitle(points: Sequence[Point]) -> str:
    runs, seeds = len({point["run"] for point in points}), len({point["seed"] for point in points})
    versions = sorted({f"{point['recipe']['model']} on {point['recipe']['data']}" for point in points})
    return f"{'; '.join(versions)}: {runs} runs, {seeds} seeds"


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    scroll = '<div class="scroll" tabindex="0">'
    return f"{scroll}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _json(value: Any) -> str:
    r"""`value` as JSON that can stand inside a script element; what is no number is null.

    >>> _json({"label": "<!--<script>", "loss": math.nan})
    '{"label": "\\u003c!--\\u003cscript>", "loss": null}'
    """

    def plain(part: Any) -> Any:
        if isinstance(part, float) and not math.isfinite(part):
            return None
        if isinstance(part, Mapping):
            return {name: plain(entry) for name, entry in part.items()}
        return [plain(entry) for entry in part] if isinstance(part, list | tuple) else part

    # No "<" at all: "</script" would end the element, and "<!--<script" would keep it from ending.
    return json.dumps(plain(value)).replace("<", "\\u003c")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs  # an extra: only this page needs it
    except ImportError as error:
        raise InvalidInput(
            "no plotting library for an HTML page", "the package plotly", "Run: pip install 'pollard[report]'."
        ) from error
    return str(get_plotlyjs())
