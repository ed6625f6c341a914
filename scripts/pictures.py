"""Draws the pictures of docs/ from the results of the studies: plots of their pages, drawn by a browser.

    python scripts/pictures.py [--results DIR] [NAME ...]

Chromium must be installed (Debian's package of that name). Results are those of `pollard report --json`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from budget_figures import seconds
from playwright.sync_api import Page, sync_playwright
from records import load

from pollard.recipes.study import Study
from pollard.report.page import study_page
from pollard.report.page.build import COLOURS, DENSE_COLOUR

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "studies"
IMAGES = ROOT / "docs" / "images"
SHAPE = {"width": 900, "height": 480}
LEGEND = {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"}}


@dataclass(frozen=True)
class Picture:
    """One plot of a study's page: of the series whose labels `only` matches, with what is chosen and set otherwise.

    measured: the seconds of a point that were timed in turns, of a step or of all phases, which runs that share a machine cannot
    tell. joined: draw a line through series that differ only in their epochs, or in when they are pruned.
    """

    study: str
    plot: str
    only: str = ".*"
    measured: Callable[[Mapping[str, Any]], float] | None = None
    joined: bool = False
    choices: Mapping[str, str] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)


def step_seconds(study: str, point: Mapping[str, Any]) -> float:
    """The seconds a step of a point, as `benchmarks/grains.py` timed it."""
    rows = {(row["study"], row["label"], row["density"]): row for row in load("grains.json")}
    return float(rows[study, point["label"], point["density"]]["ms"]) / 1e3


COMPARED = "dense|random.*|(SNIP|SynFlow)(, (shuffled|reinitialised))?|magnitude, (initial weights.*|reinitialised)"
ERROR = {"accuracy-choice": "error"}
BOUGHT = {"costs-choice": "seconds_per_step", "costs-against": "accuracy"}
SPENT = {"costs-choice": "total_flops", "costs-against": "accuracy"}
# Series of a plot that are one but for how long they train, or when they are pruned, as one line.
JOIN = """colours => {
  const plot = document.getElementById("costs"), lines = new Map();
  for (const { name, x, y, error_y } of plot.data) {
    const label = name.replace(/, (before training|(after )?[0-9.]+ epochs?)/, ""), colour = colours[lines.size];
    if (!lines.has(label)) lines.set(label, line(name, { name: label, x: [], y: [], line: { color: colour, width: 2 },
      marker: { color: colour, size: 7 }, error_y: { ...error_y, color: colour, array: [] } }));
    const own = lines.get(label);
    own.x.push(...x); own.y.push(...y); own.error_y.array.push(...error_y.array);
  }
  return Plotly.react(plot, [...lines.values()], plot.layout);
}"""
PICTURES = {
    "mnist": Picture("mnist", "accuracy", choices=ERROR),
    "fashion": Picture("fashion", "accuracy", choices=ERROR),
    "scratch": Picture("scratch", "accuracy"),
    "ablations": Picture("ablations", "accuracy", only=COMPARED),
    **{
        f"values-{mask}": Picture(
            "values",
            "leads",
            only=f"{mask}, .*",
            choices={"differences-against": f"{mask}, trained", "differences-choice": "0.02"},
            layout={"yaxis.range": [-8, 8], "xaxis.range": [0, 10]},
        )
        for mask in ("magnitude", "random")
    },
    "collapse": Picture("collapse", "accuracy"),
    "dynamic": Picture("dynamic", "accuracy", choices=ERROR),
    "budgets": Picture(
        "budgets", "costs", choices=SPENT, joined=True, layout={"xaxis.type": "log", "xaxis.tickvals": [0.5, 1, 2, 4]}
    ),
    "budgets-seconds": Picture(
        "budgets",
        "costs",
        measured=seconds,
        choices=BOUGHT,
        joined=True,
        layout={"xaxis.title.text": "seconds of all phases, on one core"},
    ),
    "when": Picture(
        "when",
        "costs",
        only="magnitude.*",
        choices=SPENT,
        joined=True,
        layout={"xaxis.type": "log", "xaxis.tickvals": [0.2, 0.3, 1.2, 3.2, 10.2]},
    ),
    "curves": Picture("curves", "curves", choices={"curves-choice": "0.02"}, layout={"yaxis.range": [90, 98.5]}),
    "grain-linear": Picture(
        "grain-linear",
        "costs",
        measured=partial(step_seconds, "grain-linear"),
        choices=BOUGHT,
        layout={"yaxis.range": [93.5, 99]},
    ),
    "grain-time": Picture("grain-time", "accuracy", layout={"yaxis.range": [95, 99]}),
    "grain-time-convolutions": Picture("grain-time-convolutions", "accuracy", layout={"yaxis.range": [55, 71]}),
    "grain-convolutions": Picture(
        "grain-convolutions",
        "costs",
        measured=partial(step_seconds, "grain-convolutions"),
        choices=BOUGHT,
        layout={"yaxis.range": [40, 68]},
    ),
    **{name: Picture(name, "accuracy") for name in ("cifar-resnet-20", "cifar-vgg-16")},
    "aims-before": Picture("aims-before", "aims", choices={"aims-choice": "singular_value"}),
    **{name: Picture(name, "aims", choices={"aims-choice": "loss"}) for name in ("aims-after", "aims-convolutions")},
}


def draw(page: Page, picture: Picture) -> str:
    """The picture as SVG, drawn on the page of its study."""
    for select, value in picture.choices.items():
        page.select_option(f"#{select}", value)
    page.evaluate(
        "only => { for (const {label} of data.series) if (!new RegExp(`^(${only})$`).test(label)) hidden.add(label);"
        "drawAll(); }",
        picture.only,
    )
    if picture.joined:
        page.evaluate(JOIN, [DENSE_COLOUR, *COLOURS])
    told: str = page.evaluate(
        "async ([plot, layout, shape]) => { await Plotly.relayout(plot, layout);"
        "return Plotly.toImage(plot, { format: 'svg', ...shape }); }",
        [picture.plot, {**LEGEND, **picture.layout}, SHAPE],
    )
    # Names are drawn by chance, and would make every picture new each time.
    return re.sub(r"(defs-|clip|legend|trace)[0-9a-f]{6}", r"\1", unquote(told.split(",", 1)[1]))


def main() -> None:
    """Draw every picture whose study has results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=STUDIES / "results", help="folder of <study>.json")
    parser.add_argument("names", nargs="*", metavar="NAME", help="pictures to draw (default: all)")
    given = parser.parse_args()
    if unknown := set(given.names) - set(PICTURES):
        sys.exit(f"no picture {', '.join(sorted(unknown))}: there are {', '.join(PICTURES)}")
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium: install Debian's package of that name")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as work:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in given.names or PICTURES:
            picture = PICTURES[name]
            results = given.results / f"{picture.study}.json"
            if not results.exists():
                print(f"no {results}: {name}.svg is left as it is")
                continue
            study = Study.read(STUDIES / f"{picture.study}.toml")
            file = Path(work) / f"{name}.html"
            points = json.loads(results.read_text("utf-8"))
            if picture.measured is not None:
                points = [{**point, "seconds_per_step": picture.measured(point)} for point in points]
            file.write_text(study_page(study.title, points, [asdict(one) for one in study.published]), "utf-8")
            page = browser.new_page(viewport={"width": 1000, "height": 800})
            page.goto(f"file://{file}")
            page.wait_for_selector("#costs .main-svg")
            (IMAGES / f"{name}.svg").write_text(draw(page, picture), "utf-8")
            print(IMAGES / f"{name}.svg")
        browser.close()


if __name__ == "__main__":
    main()
