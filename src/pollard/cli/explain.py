"""``pollard explain``: which kernel serves a layer, and why."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType

from pollard.cli import values
from pollard.cli.output import JsonFlag, emit
from pollard.kernels.explanation import explain as explain_kernel
from pollard.report.render import plain_table

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
EPILOG = """
Examples:

pollard explain 4096x4096x128 --density 0.05

pollard explain 1024x1024x256 --pattern v4 --op value_grad --asm
"""


@app.command(epilog=EPILOG)
def explain(
    shape: Annotated[str, typer.Argument(metavar="SHAPE", help="OUTxINxBATCH of the layer, as in 4096x4096x128.")],
    *,
    density: Annotated[float, typer.Option(help="Fraction of the weights that is kept, in (0, 1].")] = 0.1,
    pattern: Annotated[str, typer.Option(help="unstructured, v2, v4, v8 or v16.")] = "unstructured",
    op: Annotated[str, typer.Option(help="forward, input_grad or value_grad.")] = "forward",
    ir: Annotated[bool, typer.Option("--ir", help="Print the optimised LLVM IR of the chosen kernel.")] = False,
    asm: Annotated[bool, typer.Option("--asm", help="Print its assembly.")] = False,
    json: JsonFlag = False,
) -> None:
    """Print the kernel that a layer of this shape gets on this machine, the candidates that were timed, and the reason."""
    found = explain_kernel(op, values.shape(shape), density, pattern)
    code = {"ir": found.ir()} if ir else {}
    code |= {"assembly": found.assembly()} if asm else {}
    ranked = sorted(found.candidates, key=lambda candidate: candidate[1])
    timed = plain_table("candidates", ("kernel", "us a call"), [(spec, f"{time:.1f}") for spec, time in ranked])
    answer = {
        "choice": found.choice,
        "reason": found.reason,
        "candidates": [{"kernel": spec, "microseconds": time} for spec, time in ranked],
    }
    view: list[RenderableType] = [f"kernel: {found.choice}", f"reason: {found.reason}"]
    view += ["", timed] if ranked else []
    emit(answer | code, [*view, *filter(None, code.values())], as_json=json)
