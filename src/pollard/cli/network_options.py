"""The inputs that a network by name is called on, as options of the commands that measure whole networks."""

from __future__ import annotations

from typing import Annotated

import typer

from pollard.cli import values
from pollard.report.networks import BATCH, NETWORKS, TOKENS, Workload, load

Tokens = Annotated[
    str | None,
    typer.Option(
        metavar="BATCHxLENGTH",
        help=f"Inputs of the network {' or '.join(NETWORKS)} (default: {'x'.join(map(str, TOKENS))}).",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="BATCHxCHANNELSxHEIGHTxWIDTH",
        help=f"Inputs of a built-in network of images (default: {BATCH} of those it was made for).",
    ),
]


def workload(network: str, tokens: str | None, images: str | None) -> Workload:
    """The network of that name, with the inputs that the options say."""
    sequences = None if tokens is None else values.tokens(tokens)
    return load(network, sequences, None if images is None else values.images(images))
