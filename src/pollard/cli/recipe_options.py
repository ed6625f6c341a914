"""One command-line option for each field of a recipe: name, type, default and help are the field's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pollard.recipes.fields import read_fields
from pollard.recipes.recipe import MOVING_FIELDS, Recipe
from pollard.training import TrainingOptions

Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Where networks are scored and trained: cpu, cuda, cuda:1, ...")
]
Command = TypeVar("Command", bound=Callable[..., None])
HOW = frozenset(entry.name for entry in fields(TrainingOptions))
WHAT = frozenset(("data", "model", "initialiser", "validation"))


def recipe_options(names: Iterable[str]) -> Callable[[Command], Command]:
    """Gives a command the options of the recipe fields `names`, in place of its `**flags`, which receives them."""
    chosen = frozenset(names)

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [_option(entry) for entry in fields(Recipe) if entry.name in chosen]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]  # read by typer
        return command

    return decorate


def recipe_of(ctx: typer.Context, flags: Mapping[str, Any], file: Path | None = None) -> Recipe:
    """The recipe in `file`, if there is one, or else of defaults, with the options that were really given on top."""
    given = {name: value for name, value in flags.items() if _was_given(ctx, name)}
    # Fields are put together before the method fills in what nobody gave: another method fills in other things.
    return Recipe.from_dict({**read_fields(file), **given}) if file else Recipe(**given)


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _option(entry: Field[Any]) -> inspect.Parameter:
    kind = type(entry.default)
    panel = "What is kept"
    for title, names in (("How it trains", HOW), ("What is trained", WHAT), ("How the topology moves", MOVING_FIELDS)):
        panel = title if entry.name in names else panel
    # An empty default stands for a rule, which the help explains.
    option = typer.Option(help=entry.metadata["help"], rich_help_panel=panel, show_default=entry.default != "")
    annotation = Annotated[kind, option]  # type: ignore[valid-type]  # made at run time, for typer to read
    return inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=annotation)
