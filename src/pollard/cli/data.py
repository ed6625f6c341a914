"""``pollard data``: which data sets there are, and how to have one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from pollard import data
from pollard.cli.output import JsonFlag, emit, progress_bar
from pollard.report.render import plain_table, quantity_bytes
from pollard.settings import Settings

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="List the data sets, fetch them, and say where they are.",
)


@app.command("list")
def list_(*, json: JsonFlag = False) -> None:
    """Every data set Pollard knows, with its licence, its size, and whether it is on this machine."""
    entries = data.catalogue()
    rows = [
        (entry.name, "here" if entry.cached else quantity_bytes(entry.size), entry.description, entry.licence)
        for entry in entries
    ]
    table = plain_table("data sets", ("name", "download", "what it is", "licence"), rows, left=4)
    emit([asdict(entry) for entry in entries], [table], as_json=json)


@app.command(
    epilog="Example: pollard data get mnist fashion-mnist. A download that was cut off goes on where it stopped. "
    "POLLARD_DATA=FOLDER keeps the files elsewhere."
)
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Data sets, see `pollard data list`.")],
    *,
    json: JsonFlag = False,
) -> None:
    """Fetch data sets by pinned version and check their sha256; a set that is here already is not fetched again."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    folders: dict[str, str | None] = {}
    with progress_bar(*columns) as progress:
        for name in names:
            folder = _fetched(name, progress)
            folders[name] = str(folder) if folder else None
    lines = [f"{name}: {folder or 'built in, nothing to fetch'}" for name, folder in folders.items()]
    emit(folders, lines, as_json=json)


def _fetched(name: str, progress: Progress) -> Path | None:
    task = progress.add_task(f"fetching {name}", total=None)

    def show(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    folder = data.fetch(name, progress=show)
    progress.remove_task(task)
    return folder


@app.command()
def path(*, json: JsonFlag = False) -> None:
    """The folder that data sets are kept in, set by POLLARD_DATA."""
    folder = str(Settings.read().data)
    emit({"path": folder}, [folder], as_json=json)
