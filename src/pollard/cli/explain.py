"""``pollard explain``: which kernel serves a layer, and why; where a network's time goes; what a method does over time."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import RenderableType

from pollard.activations import ACTIVATIONS
from pollard.cli import values
from pollard.cli.network_options import Images, Tokens, workload
from pollard.cli.output import JsonFlag, emit, stages
from pollard.errors import InvalidInput
from pollard.kernels.convolutions.explanation import explain as explain_convolution
from pollard.kernels.products.explanation import Explanation
from pollard.kernels.products.explanation import explain as explain_kernel
from pollard.recipes.moving import Span, moving_method
from pollard.report.network_costs import network_costs
from pollard.report.network_tables import costs_tables
from pollard.report.networks import Workload, is_known, known
from pollard.report.render import plain_table
from pollard.report.schedule import schedule_view
from pollard.training.methods import METHODS

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
EPILOG = """
Examples:

pollard explain 4096x4096x128 --density 0.05

pollard explain 1024x1024x256 --pattern v4 --op value_grad --asm

pollard explain 1536x384x1024 --pattern v8 --activation gelu

pollard explain encoder --tokens 1x128 --pattern v8

pollard explain my_models:small --dtype bfloat16

pollard explain gmp --density 0.05 --steps 20000

pollard explain set --steps 20000 --epoch 500 --method-options fraction=0.2,signed=false
"""


@app.command(epilog=EPILOG)
def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="OUTxINxBATCH of a layer, as in 4096x4096x128; OUTxCHANNELSxROWSxCOLUMNS of a convolution, as in 64x64x3x3; a "
            "network, "
            f"{known()}; or a method that moves topologies, as rigl.",
        ),
    ],
    *,
    density: Annotated[float, typer.Option(help="Fraction of the weights that is kept, in (0, 1].")] = 0.1,
    pattern: Annotated[str, typer.Option(help="unstructured, v4, b16x2, 2:4, ...")] = "unstructured",
    op: Annotated[str, typer.Option(help="forward, input_grad or value_grad.")] = "forward",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    activation: Annotated[
        str | None, typer.Option(help=f"Of a layer, fused into its forward product: {', '.join(ACTIVATIONS)}.")
    ] = None,
    ir: Annotated[bool, typer.Option("--ir", help="Print the optimised LLVM IR of the chosen kernel.")] = False,
    asm: Annotated[bool, typer.Option("--asm", help="Print its assembly.")] = False,
    tokens: Tokens = None,
    images: Images = None,
    steps: Annotated[int, typer.Option(min=1, help="Of a method: steps of the whole training.")] = 10_000,
    epoch: Annotated[int, typer.Option(min=1, help="Of a method: steps of an epoch.")] = 100,
    method_options: Annotated[str, typer.Option(help="Of a method: its options, as in every=50,fraction=0.2.")] = "",
    json: JsonFlag = False,
) -> None:
    """Print what computes a layer of this shape on this machine, the kernels that were timed, and the reason.

    Given a network, print what each layer costs in inference once it is pruned by magnitude, and the rest of it, beside dense
    float32 and dense bfloat16. Given a method, print when it updates the topology, what density it holds and how much it
    exchanges.
    """
    if what in METHODS:
        method = moving_method(what, density, Span(steps, epoch), {}, method_options)
        answer, view = schedule_view(method, steps, density)
    elif is_known(what):
        answer, view = _network_view(workload(what, tokens, images), pattern=pattern, density=density, dtype=dtype)
    elif values.is_shape(what):
        kept = density, pattern
        found = _explained(what, op, kept, dtype=dtype, device=device, activation=activation, images=images)
        answer, view = _kernel_view(found, ir=ir, asm=asm)
    else:
        raise InvalidInput(
            repr(what),
            f"OUTxINxBATCH, a network ({known()}), or one of " + ", ".join(METHODS),
            "pollard explain 1024x1024x128, or pollard explain 64x64x3x3, for example.",
        )
    emit(answer, view, as_json=json)


def _network_view(whole: Workload, **options: Any) -> tuple[dict[str, Any], list[RenderableType]]:
    """What a network costs, layer by layer, as JSON and for a terminal."""
    with stages() as tell:
        costs = network_costs(whole, tell=tell, **options)
    return costs.as_json(), [part for table in costs_tables(costs) for part in (table, "")]


def _kernel_view(found: Explanation, *, ir: bool, asm: bool) -> tuple[dict[str, Any], list[RenderableType]]:
    """The chosen kernel, why, those that were timed, the fastest first, and its code if asked, as JSON and for a terminal."""
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
    if ranked:
        view += ["", timed]
    return answer | code, [*view, *filter(None, code.values())]


def _explained(
    what: str,
    op: str,
    kept: tuple[float, str],
    *,
    dtype: str,
    device: str,
    activation: str | None,
    images: str | None,
) -> Explanation:
    if what.count("x") != 3:
        return explain_kernel(op, values.shape(what), *kept, dtype=dtype, device=device, activation=activation)
    if activation is not None:
        raise InvalidInput(
            f"--activation {activation} of a convolution", "one of a layer OUTxINxBATCH", "Leave --activation out."
        )
    shape = values.convolution(what)
    over = (32, shape[1], 32, 32) if images is None else values.images(images)
    return explain_convolution(op, shape, *kept, images=over, dtype=dtype, device=device)
