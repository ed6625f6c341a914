"""Where words go: answers on standard output, as JSON or for people; progress and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, TextColumn

from pollard.errors import PollardError, StoreError

Answer = Mapping[str, Any] | Sequence[Any]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
# Rich assumes 80 columns where there is no terminal, and folds tables that a file or a pager has room for.
PIPED_WIDTH, WIDEST = 160, 1000


def emit(answer: Answer, view: Iterable[RenderableType], *, as_json: bool) -> None:
    """Print a command's answer: `answer` as one JSON document, or else each part of `view`; StoreError where it cannot be written."""
    try:
        _written(answer, view, as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # whoever read it has read enough
    except OSError as failed:
        # What is left in its buffer would be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise StoreError(
            f"standard output that cannot be written to: {failed.strerror}",
            "a terminal, a pipe, or a file on a disk with room",
            "Make room, or send the output elsewhere, and run the command again: what it has stored itself is kept.",
        ) from failed


def _written(answer: Answer, view: Iterable[RenderableType], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return
    out = console()
    for part in view:
        if not out.is_terminal:
            out.width = max(PIPED_WIDTH, out.measure(part, options=out.options.update_width(WIDEST)).maximum)
        # A path or a JSON line that is folded cannot be copied.
        out.print(part, soft_wrap=isinstance(part, str))


def console(*, stderr: bool = False) -> Console:
    """A console on the present standard output, or standard error."""
    out = Console(stderr=stderr, highlight=False, markup=False)
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    return out


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on standard error that leaves nothing behind; no bar at all where nobody would see it move."""
    out = console(stderr=True)
    return Progress(*columns, console=out, transient=True, disable=not out.is_terminal)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """What takes the name of each stage, shown on standard error while it lasts; no thread of its own, which timings would feel."""
    out = console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), console=out, transient=True, auto_refresh=False, disable=not out.is_terminal
    ) as progress:
        stage = progress.add_task("")
        yield lambda name: progress.update(stage, description=name, refresh=True)


def print_error(error: PollardError) -> None:
    """The three lines of an error, on standard error."""
    lines = (("got", error.got), ("expected", error.expected), ("next step", error.fix))
    sys.stderr.write("".join(f"{name + ':':<10} {text}\n" for name, text in lines))


def print_interrupted() -> None:
    """What is lost when a command is stopped, on standard error."""
    sys.stderr.write(
        "\nStopped. Run the same command again to go on: `train` and `study` continue after their last "
        "checkpoint, `data get` from the last byte.\n"
    )
