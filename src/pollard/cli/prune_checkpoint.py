"""``pollard prune-checkpoint``: from a dense file to a sparse one, in memory of what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from pollard.cli import values
from pollard.cli.output import JsonFlag, emit, progress_bar
from pollard.pruning.checkpoints import Watch, prune_checkpoint
from pollard.pruning.plan import Plan
from pollard.report.render import quantity_bytes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
EPILOG = """
Examples:

pollard prune-checkpoint model.safetensors --out sparse.safetensors --density 0.05

pollard prune-checkpoint folder-of-shards --out sparse.safetensors --pattern 2:4 --layers "model.layers"

`pollard.load_sparse(model, "sparse.safetensors")` makes a model sparse by the result.
"""


@app.command(epilog=EPILOG)
def main(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A .safetensors file, or a folder of `save_pretrained`, in shards or not."),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the sparse safetensors file is written.")],
    criterion: Annotated[
        str, typer.Option(help="magnitude, which keeps the largest weights, or random.")
    ] = "magnitude",
    density: Annotated[
        float | None,
        typer.Option(help="Fraction kept, 95 % sparsity is 0.05. [default: 0.1, or what an N:M pattern keeps]"),
    ] = None,
    allocation: Annotated[
        str | None, typer.Option(help="erk, er, uniform, global, ...: a density for each layer. [default: erk]")
    ] = None,
    pattern: Annotated[
        str, typer.Option(help="What is kept together: unstructured, v4, b16x2, 2:4, ...")
    ] = "unstructured",
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Only these matrices, as name patterns. [default: all tensors NAME.weight of two axes or more that are not named "
            "as embeddings are]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="For the random criterion.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Prune a dense checkpoint of any size, from file to file, without its model and without holding it in memory.

    It is read some rows at a time, once to decide and once to write. Tensors that are not pruned are copied.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        plan = prune_checkpoint(
            path,
            out,
            criterion,
            density,
            allocation=allocation,
            pattern=pattern,
            layers=None if layers is None else values.words(layers, "layers"),
            generator=torch.Generator("cpu").manual_seed(seed),
            watch=_shown(progress),
        )
    size = out.stat().st_size
    view: list[RenderableType] = [plan.table(), f"{quantity_bytes(size)} written to {out}"]
    emit({"out": str(out), "bytes": size} | _told(plan), view, as_json=json)


def _told(plan: Plan) -> dict[str, Any]:
    layers = {
        name: {"shape": list(kept.shape), "pattern": str(kept.pattern), "density": kept.density, "nnz": kept.nnz}
        for name, kept in plan.items()
    }
    return {
        "density": plan.density,
        "nnz": plan.nnz,
        "weights": plan.weights,
        "collapsed": plan.collapsed,
        "coverage": plan.coverage.to_dict() if plan.coverage else None,
        "layers": layers,
    }


def _shown(progress: Progress) -> Watch:
    tasks = {what: progress.add_task(what, total=None, visible=False) for what in ("scoring", "writing")}

    def show(what: str, done: int, total: int) -> None:
        progress.update(tasks[what], completed=done, total=total, visible=True)

    return show
