"""``pollard prune``: what would be kept, without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pollard.cli.output import JsonFlag, emit
from pollard.cli.recipe_options import recipe_of, recipe_options
from pollard.coverage import Coverage
from pollard.errors import InvalidInput
from pollard.recipes.build import build
from pollard.recipes.problem import Problem

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
FIELDS = (
    "data",
    "model",
    "initialiser",
    "never_dense",
    "method",
    "density",
    "allocation",
    "pattern",
    "score_batch",
    "batch_size",
    "seed",
)
EPILOG = """
Examples:

pollard prune --data mnist --density 0.05

pollard prune --data mnist --method random --allocation erk --pattern v4 --save plan.safetensors

`pollard train` with the same options prunes to the same plan.
"""


@app.command(epilog=EPILOG)
@recipe_options(FIELDS)
def prune(
    ctx: typer.Context,
    *,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan to FILE; `Plan.load` reads it.")
    ] = None,
    json: JsonFlag = False,
    **flags: Any,
) -> None:
    """Decide what a network keeps, and print the plan layer by layer, without training.

    Density is the fraction kept: 95 % sparsity is --density 0.05.
    """
    recipe = recipe_of(ctx, flags)
    problem = Problem.of(recipe)
    model, plan = build(recipe, problem.ends, problem.examples)
    if plan is None:
        raise InvalidInput(
            "method 'dense'", "a method that removes something", "Use --method snip, magnitude or random."
        )
    plan = replace(plan, coverage=Coverage.of(model, plan))
    if save is not None:
        plan.save(save)
    layers = {
        name: {
            "shape": list(topology.shape),
            "pattern": str(topology.pattern),
            "density": topology.density,
            "nnz": topology.nnz,
            "bytes": topology.bytes,
            "fingerprint": topology.fingerprint,
        }
        for name, topology in plan.items()
    }
    answer = {
        "density": plan.density,
        "nnz": plan.nnz,
        "weights": plan.weights,
        "collapsed": plan.collapsed,
        "coverage": Coverage.of(model, plan).to_dict(),
        "layers": layers,
    }
    emit(answer, [plan.table()], as_json=json)
