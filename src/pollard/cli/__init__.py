"""The command line: it parses, calls and prints, and does nothing else. Each command is a module of this package."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pollard.cli.output import EXIT_ERROR, EXIT_INTERRUPTED, print_error, print_interrupted
from pollard.errors import PollardError

COMMANDS = {
    "train": "Train a sparse network, its topology fixed or moving, and measure it; `--compare dense` sets its twin beside it.",
    "prune": "Decide what a network keeps, and print the plan layer by layer, without training.",
    "prune-checkpoint": "Prune a dense checkpoint of any size, from file to file, without its model and without holding it in memory.",
    "study": "Run a grid of recipes over densities and seeds, side by side; stopped at any moment, it goes on.",
    "report": "Show what a study came to: tables, JSON, CSV, Markdown, or one interactive page.",
    "bench": "Time sparse layers, training steps and whole networks against dense torch and other sparse libraries.",
    "data": "List the data sets, fetch them, and say where they are.",
    "explain": "Print which kernel a layer gets, and why; what a network costs, layer by layer; or what a method does over time.",
    "doctor": "Describe this machine and check every kernel on it.",
}


class LazyCommand(TyperCommand):
    """A command that is known by one line until it is called: its module loads torch, which `pollard --help` need not."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, with its own options and help."""
        real = typer.main.get_command(import_module(f"pollard.cli.{str(self.name).replace('-', '_')}").app)
        return real.make_context(info_name, args, parent, **extra)


class PollardGroup(TyperGroup):
    """All commands: errors that Pollard raises on purpose become three lines, and an interrupt says how to go on."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = {name: LazyCommand(name, help=told) for name, told in COMMANDS.items()}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  the signature is typer's
        """Names of the commands, in the order that a newcomer needs them."""
        return list(COMMANDS)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with ``--debug`` understood wherever it stands."""
        if "--debug" in args:
            args = ["--debug", *(word for word in args if word != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PollardError as error:
            if ctx.params["debug"]:
                raise
            print_error(error)
            raise typer.Exit(EXIT_ERROR) from error
        except KeyboardInterrupt as stopped:
            if ctx.params["debug"]:
                raise
            print_interrupted()
            raise typer.Exit(EXIT_INTERRUPTED) from stopped


app = typer.Typer(cls=PollardGroup, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback(epilog="Start with: pollard train")
def pollard(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    """Truly sparse networks in PyTorch: choose what to keep, store only that, train only that, run only that."""
    # Declared here for --help; PollardGroup.invoke reads it from the context.
    del debug


def main() -> None:
    """The entry point of the `pollard` command."""
    app(prog_name="pollard")
