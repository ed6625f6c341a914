"""``pollard study``: a file of runs, side by side, and what they came to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from pollard.cli.output import JsonFlag, emit, progress_bar
from pollard.cli.recipe_options import Device
from pollard.recipes.engines import Outcome, run_study, unfinished
from pollard.recipes.engines.local import cores
from pollard.recipes.known import bring, points_of
from pollard.recipes.points import points
from pollard.recipes.recipe import Recipe
from pollard.recipes.study import Study
from pollard.report.accuracy import accuracy_table
from pollard.report.choice import validation_tables

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
EPILOG = """
Examples:

pollard study studies/smoke.toml --out runs/smoke

pollard study studies/mnist.toml --out runs/mnist --workers 8

pollard study studies/cifar-resnet-20.toml --out runs/resnet-20 --device cuda --workers 6

pollard study studies/mnist.toml --out /shared/mnist --engine ray --ray-address auto

pollard study studies/mnist.toml --out runs/mnist --known studies/results/mnist.json

pollard report runs/smoke --html smoke.html

Stopped or killed at any moment, the same command goes on: finished runs are not run again.
"""


class EngineName(StrEnum):
    """Where runs are executed."""

    LOCAL = "local"
    RAY = "ray"


@app.command(epilog=EPILOG)
def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study: a TOML file, as those in studies/.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the study's runs.")],
    engine: Annotated[EngineName, typer.Option(help="Processes on this machine, or tasks of a Ray cluster.")] = (
        EngineName.LOCAL
    ),
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The Ray cluster to join (default: one is started here).")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Runs side by side; 0 for one a core.")] = 0,
    device: Device = "cpu",
    known: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Points of this study, as pollard report --json writes them: not run again."),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what has failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs, and which are left.")] = False,
    json: JsonFlag = False,
) -> None:
    """Run every recipe of a study: a grid of fields, for each of several series.

    A run that fails is kept and reported, and the others go on; the exit status is then 1.
    """
    chosen = Study.read(file)
    brought = {} if known is None else points_of(chosen, known)
    if dry_run:
        _list(chosen, unfinished(chosen, out, brought), as_json=json)
        return
    if brought:
        bring(brought, out)
    failed = _run_with_progress(
        chosen,
        out,
        engine=engine.value,
        address=ray_address,
        workers=workers or cores(),
        device=device,
        retry=retry,
    )
    found = points(out)
    answer = {"title": chosen.title, "out": str(out), "runs": len(found), "failed": {o.run: o.error for o in failed}}
    lines = [f"{outcome.run} failed: {outcome.error}" for outcome in failed]
    tables = [accuracy_table(found, chosen.title), *validation_tables(found)]
    view: list[Any] = [*(part for table in tables for part in (table, "")), *lines, f"folder: {out}"]
    emit(answer, view, as_json=json)
    if failed:
        raise typer.Exit(1)


def _list(chosen: Study, left: Sequence[Recipe], *, as_json: bool) -> None:
    runs = [{"run": run.recipe.digest, "label": run.label, "finished": run.recipe not in left} for run in chosen.runs()]
    lines = [f"{'done' if run['finished'] else 'left'}  {run['run']}  {run['label']}" for run in runs]
    emit({"runs": runs, "left": len(left)}, [*lines, f"{len(left)} of {len(chosen.recipes())} left"], as_json=as_json)


def _run_with_progress(chosen: Study, out: Path, **how: Any) -> list[Outcome]:
    """Run what is left, with a bar in a terminal and a line a run elsewhere."""
    total = len(unfinished(chosen, out))
    done = 0
    columns = (TextColumn(chosen.title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as bar:
        task = bar.add_task("", total=total)

        def tell(outcome: Outcome) -> None:
            nonlocal done
            done += 1
            bar.advance(task)
            if bar.disable:
                became = f"finished in {outcome.seconds:.1f} s" if outcome.error is None else f"failed: {outcome.error}"
                sys.stderr.write(f"{done}/{total} {outcome.run} {became}\n")

        return run_study(chosen, out, on_done=tell, **how)
