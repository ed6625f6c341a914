"""``pollard train``: an experiment from flags to a run folder, and what it came to."""

from __future__ import annotations

from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from pollard.cli.output import JsonFlag, emit
from pollard.cli.recipe_options import Device, recipe_of, recipe_options
from pollard.coverage import Coverage
from pollard.formats.store import write_atomic
from pollard.recipes.recipe import Recipe
from pollard.recipes.result import RunResult
from pollard.recipes.run import run
from pollard.report.plot import svg
from pollard.report.render import terminal_plot
from pollard.report.summary import accuracy_curves, comparison_table, run_figure
from pollard.training import processes, read_metrics
from pollard.training.loop import METRICS

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
PLOT = "plot.svg"
EPILOG = """
Examples:

pollard train

pollard train --data mnist --density 0.05 --epochs 10 --compare dense

pollard train --data mnist --model mlp-784-1024-1024-10 --pattern v4 --optimizer adam --lr 0.001

pollard train --data mnist --method rigl --density 0.05 --update-every 100

pollard train --recipe recipe.toml --seed 1

pollard train --data cifar-10 --model resnet-20 --storage masked --device cuda

torchrun --nproc-per-node 2 -m pollard train --data mnist --method rigl

The run folder is OUT/HASH, named by the recipe. The same command again goes on with an unfinished run, and reports a
finished one.
"""


class Twin(StrEnum):
    """What a run can be set beside."""

    DENSE = "dense"


@app.command(epilog=EPILOG)
@recipe_options(entry.name for entry in fields(Recipe))
def train(
    ctx: typer.Context,
    *,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start from a recipe in .toml or .json; options given here win.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of run folders.")] = Path("runs"),
    compare: Annotated[Twin | None, typer.Option(help="Train the dense twin too, and set it beside.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch and of the kernels (default: torch's own number).")
    ] = None,
    device: Device = "cpu",
    checkpoint_steps: Annotated[
        int, typer.Option(min=0, help="Checkpoint every so many steps too, not only each epoch; 0 for never.")
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard events into the run folder.")
    ] = False,
    json: JsonFlag = False,
    **flags: Any,
) -> None:
    """Train a sparse network and measure it: pruned before training, or with a topology that moves while it trains.

    Without options: SNIP at density 0.1 on the built-in digits, in seconds. Density is the fraction kept: 95 % sparsity is
    --density 0.05. `pollard explain rigl` shows what a method that moves the topology does over time.
    """
    experiment = recipe_of(ctx, flags, recipe)
    with processes.joined():
        result = run(
            experiment,
            out,
            device=device,
            compare="dense" if compare else None,
            threads=threads,
            tensorboard=tensorboard,
            checkpoint_steps=checkpoint_steps,
        )
        first = processes.rank() == 0
    if first:
        _tell(experiment, result, out, as_json=json)


def _tell(experiment: Recipe, result: RunResult, out: Path, *, as_json: bool) -> None:
    told = result.to_dict()
    twin = out / experiment.twin().digest if result.dense else None
    curves = accuracy_curves(
        told, read_metrics(result.folder / METRICS), read_metrics(twin / METRICS) if twin else None
    )
    plot = result.folder / PLOT
    write_atomic(plot, svg(run_figure(told, curves)).encode())
    coverage = Coverage.of(result.model())
    answer = told | {
        "coverage": coverage.to_dict(),
        "folder": str(result.folder),
        "plot": str(plot),
        "reused": result.reused,
    }
    picture: list[RenderableType] = ["", "test accuracy in percent, by epoch", terminal_plot(curves), ""]
    emit(answer, [*_plan(result, coverage), comparison_table(told), *picture, *_where(result, plot)], as_json=as_json)


def _plan(result: RunResult, coverage: Coverage) -> list[RenderableType]:
    kept = result.kept()
    return [] if kept is None else [replace(kept, coverage=coverage).table(), ""]


def _where(result: RunResult, plot: Path) -> list[str]:
    finished = "was finished before; this is its report" if result.reused else "is finished"
    return [f"run {result.recipe.digest} {finished}", f"folder: {result.folder}", f"plot:   {plot}"]
