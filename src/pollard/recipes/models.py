"""Networks by name, and their initial weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.nn import initialise
from pollard.nn.initialise import Initialiser

LENET_HIDDEN = (300, 100)
INITIALISERS: dict[str, Initialiser] = {
    "lecun": initialise.lecun_normal,
    "kaiming": initialise.kaiming_normal,
    "xavier": initialise.xavier_normal,
    "torch": initialise.uniform,
}


def layer_sizes(model: str, features: int, classes: int) -> tuple[int, ...]:
    """Neurons per layer, input and output included, of the network called `model` for data of this size.

    ``lenet-300-100`` takes its ends from the data; ``mlp-784-1024-10`` names all of its layers.
    Raises InvalidInput for another name, or where the ends do not fit the data.

    >>> layer_sizes("lenet-300-100", features=64, classes=10)
    (64, 300, 100, 10)
    """
    check_model_name(model)
    if model == "lenet-300-100":
        return (features, *LENET_HIDDEN, classes)
    sizes = tuple(int(size) for size in model.split("-")[1:])
    if sizes[0] != features or sizes[-1] < classes:
        fitting = "-".join(map(str, ("mlp", features, *sizes[1:-1], classes)))
        raise InvalidInput(
            f"model {model!r} for {features} features and {classes} classes",
            "ends that fit the data",
            f"Use {fitting!r}.",
        )
    return sizes


def check_model_name(model: str) -> None:
    """Raises InvalidInput unless `model` names a network."""
    if model != "lenet-300-100" and not re.fullmatch(r"mlp(-[1-9][0-9]{0,7}){2,}", model):
        raise InvalidInput(
            f"model {model!r}",
            "lenet-300-100, or mlp and its layer sizes as in mlp-784-1024-1024-10",
            "The first size is the features of the data, the last its classes.",
        )


def dense_network(sizes: Sequence[int], initialiser: str, generator: torch.Generator) -> nn.Sequential:
    """Linear layers of `sizes` with ReLU between them, weights drawn by `initialiser`, biases 0."""
    return network(sizes, lambda inputs, outputs: _dense_layer(inputs, outputs, INITIALISERS[initialiser], generator))


def network(sizes: Sequence[int], make_layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    """`make_layer(inputs, outputs)` for each pair of neighbouring `sizes`, with ReLU between them.

    >>> [name for name, _ in network((4, 3, 2), nn.Linear).named_children()]
    ['fc1', 'relu1', 'fc2']
    """
    layers = nn.Sequential()
    last = len(sizes) - 1
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers.add_module(f"fc{number}", make_layer(inputs, outputs))
        if number < last:
            layers.add_module(f"relu{number}", nn.ReLU())
    return layers


def layer_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Layer name to weight shape `(out, in)` in `network(sizes, ...)`.

    >>> layer_shapes((4, 3, 2))
    {'fc1': (3, 4), 'fc2': (2, 3)}
    """
    return {f"fc{number}": (outputs, inputs) for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1)}


def _dense_layer(inputs: int, outputs: int, initialiser: Initialiser, generator: torch.Generator) -> nn.Linear:
    # Made on no device: nn.Linear's own initialisation would draw from torch's global generator.
    layer = nn.Linear(inputs, outputs, device="meta")
    # Where everything is kept, values in their order are the weight in row-major order.
    weight = initialiser(Topology.full((outputs, inputs)), generator).view(outputs, inputs)
    layer.weight, layer.bias = (
        nn.Parameter(weight),
        nn.Parameter(torch.zeros(outputs, dtype=torch.float32, device="cpu")),
    )
    return layer
