"""``pollard report``: what a study came to, for people and for programs."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pollard.cli.output import emit
from pollard.formats.store import write_atomic
from pollard.recipes.points import read_study
from pollard.recipes.study import read_ledger
from pollard.report.accuracy import accuracy_table, csv_text, labels, markdown_table
from pollard.report.choice import validation_tables
from pollard.report.collapse import collapse_table, collapses
from pollard.report.comparison import difference_rows, difference_table
from pollard.report.correlation import correlation_table
from pollard.report.page import study_page
from pollard.report.render import markdown as as_markdown
from pollard.report.render import texts

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
EPILOG = """
Examples:

pollard report runs/smoke

pollard report runs/smoke --html smoke.html

pollard report runs/smoke --against SNIP --pairs pairs.csv

pollard report runs/smoke --json points.json --csv points.csv --markdown table.md

A study that still runs can be reported too: what is finished is shown.
"""


@app.command(epilog=EPILOG)
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `pollard study` was given as --out.")],
    *,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one interactive page that needs no network.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all points as a JSON list.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all points as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the difference of every two series as CSV, with intervals."),
    ] = None,
    against: Annotated[
        str, typer.Option(metavar="LABEL", help="The series to set all others beside (default: the first).")
    ] = "",
) -> None:
    """Show test accuracy by series and density, mean and 95 % interval over seeds, and what differs seed by seed; write it to files."""
    ledger, (found, failed) = read_ledger(folder), read_study(folder)
    tables = _tables(found, ledger["title"], against)
    files = {
        json: "[\n" + ",\n".join(map(json_format.dumps, found)) + "\n]\n",  # a line a point
        csv: csv_text(found),
        pairs: csv_text(difference_rows(found)),
        markdown: f"# {ledger['title']}\n\n{markdown_table(found, ledger['published'])}{_sections(validation_tables(found))}",
    }
    if html is not None:
        files[html] = study_page(ledger["title"], found, ledger["published"])
    for file, text in files.items():
        if file is not None:
            write_atomic(file, text.encode())
    lines = [f"{run} failed: {error}" for run, error in failed.items()]
    planned = len({run["run"] for run in ledger["runs"]})
    state = f"{len({point['run'] for point in found})} of {planned} runs are finished"
    emit(found, [*tables, *lines, state], as_json=False)


def _tables(found: list[dict[str, Any]], title: str, against: str) -> list[Any]:
    """The tables that there is something for, each with an empty line after it."""
    if not found:
        return [title]
    collapsed = [collapse_table(found), ""] if any(sum(one.empty.values()) for one in collapses(found)) else []
    aims = [correlation_table(found), ""] if any(point["aims"] for point in found) else []
    first, *others = labels(found)
    beside = [difference_table(found, against or first), ""] if others or against else []
    validated = [part for table in validation_tables(found) for part in (table, "")]
    return [accuracy_table(found, title), "", *validated, *beside, *collapsed, *aims]


def _sections(tables: Sequence[Table]) -> str:
    """The tables in Markdown, each under its title."""
    return "".join(f"\n## {str(table.title).capitalize()}\n\n{as_markdown(*texts(table))}" for table in tables)
