"""``pollard bench``: what sparse costs beside dense, on this machine, in one process."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from typer.core import TyperCommand

from pollard.cli import values
from pollard.cli.network_options import Images, Tokens, workload
from pollard.cli.output import emit, progress_bar, stages
from pollard.formats.store import write_atomic
from pollard.report.bench import ROUNDS, cases, measure, network_cases
from pollard.report.case import DTYPES, OPERATIONS, Case
from pollard.report.network_bench import measure_network
from pollard.report.network_tables import network_tables
from pollard.report.networks import Workload, is_known, known
from pollard.report.render import bench_tables

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
STDOUT = "-"
DEFAULT_SHAPE = "1024x1024x256"
EPILOG = """
Examples:

pollard bench 4096x4096x128 --density 0.1,0.05 --pattern unstructured,v4

pollard bench 1024x1024x256 --op step --optimizer momentum --threads 1,2 --json records.json

pollard bench --step-network 3072-4096-4096-10 --batch 128 --density 0.1

pollard bench 4096x4096x128 --op forward --dtype float32,bfloat16

pollard bench encoder --tokens 1x128 --pattern v8 --dtype float32,bfloat16

pollard bench my_models:small --density 0.1,0.05

Every contender is verified before it is timed. Dense torch competes in every way it has here, nn.Linear and oneDNN among
them, in the same precision and in bfloat16; a case that the fastest way in the same precision wins is marked.
"""

Json = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="[FILE]", help="Write the records to FILE; without FILE, print them and nothing else."
    ),
]
What = Annotated[
    str | None,
    typer.Argument(
        metavar="WHAT",
        help=f"OUTxINxBATCH of a layer (default: {DEFAULT_SHAPE}), or a whole network in inference, pruned by magnitude: {known()}, "
        "which takes nothing and returns the model and its inputs; one that is sparse already is timed as it is. Several are "
        "separated by commas.",
    ),
]
# The same under the names that it had.
Named = Annotated[str | None, typer.Option(hidden=True)]


class BenchCommand(TyperCommand):
    """A command whose ``--json`` may stand without a file: it then means standard output, as in the other commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with the file that a bare ``--json`` leaves out put in."""
        filled = []
        for index, word in enumerate(args):
            filled.append(word)
            following = args[index + 1 : index + 2]
            if word == "--json" and (not following or _is_no_file(following[0])):
                filled.append(STDOUT)
        return super().parse_args(ctx, filled)


def _is_no_file(word: str) -> bool:
    return word.startswith("--") or all(values.is_shape(one) or is_known(one) for one in word.split(","))


@app.command(cls=BenchCommand, epilog=EPILOG)
def bench(
    what: What = None,
    *,
    shape: Named = None,
    density: Annotated[str, typer.Option(help="Fractions kept, separated by commas: 0.1 is 90 % sparse.")] = "0.1",
    pattern: Annotated[
        str, typer.Option(help="unstructured, v4 (4 rows share their columns), b16x2 (blocks), 2:4, ...")
    ] = "unstructured",
    op: Annotated[
        str, typer.Option(help="forward, input_grad, value_grad, forward+backward, step (with the optimizer).")
    ] = ",".join(OPERATIONS),
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}, separated by commas.")] = "float32",
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    rounds: Annotated[
        int, typer.Option(min=1, help="Samples a contender, taken in turns; the figures are medians.")
    ] = ROUNDS,
    optimizer: Annotated[str, typer.Option(help="adam, adamw, sgd or momentum, for the steps.")] = "adam",
    step_network: Annotated[
        str | None,
        typer.Option(metavar="WIDTHS", help="Time whole training steps of this ReLU network, as in 784-1024-1024-10."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a batch of --step-network.")] = 128,
    network: Named = None,
    tokens: Tokens = None,
    images: Images = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Have torch.compile be one of the dense ways of a network; takes a minute."),
    ] = False,
    peers: Annotated[
        bool, typer.Option(help="Run torch.sparse, SciPy and MKL (where installed) too; they have no half precision.")
    ] = True,
    json: Json = None,
) -> None:
    """Time sparse layers, training steps and whole networks against dense torch at its best, torch.sparse, SciPy and MKL.

    Times are milliseconds a call, medians of rounds in which the contenders take turns. Layers are timed as a user calls
    them: batch first in and out, with whatever packing that takes.
    """
    grid: dict[str, Any] = {
        "patterns": values.words(pattern, "pattern"),
        "densities": values.numbers(density, "density"),
        "dtypes": values.words(dtype, "dtype"),
    }
    counts = values.counts(threads, "threads")
    trained = {**grid, "threads": counts, "optimizer": optimizer}
    named = ",".join(filter(None, (what, shape, network)))
    asked = values.words(named or DEFAULT_SHAPE, "shape") if named or step_network is None else []
    wholes = [workload(one, tokens, images) for one in asked if not values.is_shape(one)]
    todo = cases(values.words(op, "op"), [values.shape(one) for one in asked if values.is_shape(one)], **trained)
    if step_network is not None:
        todo += network_cases(values.widths(step_network), batch, **trained)
    layers = _time_cases(todo, rounds=rounds, peers=peers) if todo else []
    networks = _time_networks(wholes, counts, rounds=rounds, compiled=compiled, **grid) if wholes else []
    # The tables first: a file that cannot be written must not take an hour of timings with it.
    tables, records = [*bench_tables(layers), *network_tables(networks)], layers + networks
    emit(records, [part for table in tables for part in (table, "")], as_json=json == STDOUT)
    if json is not None and json != STDOUT:
        write_atomic(Path(json), (jsonlib.dumps(records, indent=1) + "\n").encode())


def _time_cases(todo: list[Case], **options: Any) -> list[dict[str, Any]]:
    with progress_bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as progress:
        return [measure(case, **options).as_json() for case in progress.track(todo, description="timing")]


def _time_networks(wholes: list[Workload], threads: list[int], **options: Any) -> list[dict[str, Any]]:
    with stages() as tell:
        timed = [measure_network(one, threads=count, tell=tell, **options) for one in wholes for count in threads]
    return [record.as_json() for records in timed for record in records]
