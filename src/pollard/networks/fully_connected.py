"""Linear layers with ReLU between them: LeNet-300-100 and networks that name their own sizes.

Source: LeCun et al., Gradient-based learning applied to document recognition, 1998, for LeNet-300-100; with ReLU in place of its
sigmoids, as papers on pruning have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import nn

from pollard.errors import InvalidInput
from pollard.networks.architecture import Ends, architecture

LENET = "lenet-300-100"
LENET_HIDDEN = (300, 100)
SIZES = re.compile(r"mlp(-[1-9][0-9]{0,7}){2,}")


def is_fully_connected(name: str) -> bool:
    """Whether the network called `name` is one of linear layers alone, which takes flat inputs `(samples, features)`.

    >>> is_fully_connected("mlp-784-300-10"), is_fully_connected("vgg-16")
    (True, False)
    """
    return name == LENET or SIZES.fullmatch(name) is not None


def layer_sizes(name: str, ends: Ends) -> tuple[int, ...]:
    """Neurons per layer, input and output included, of the fully connected network called `name`.

    ``lenet-300-100`` takes its ends from the data; ``mlp-784-1024-10`` names all of its layers.
    Raises InvalidInput where the ends do not fit.

    >>> layer_sizes("lenet-300-100", Ends((64,), 10))
    (64, 300, 100, 10)
    """
    features, classes = prod(ends.input_shape), ends.classes
    if name == LENET:
        return (features, *LENET_HIDDEN, classes)
    sizes = tuple(int(size) for size in name.split("-")[1:])
    if sizes[0] != features or sizes[-1] < classes:
        fitting = "-".join(map(str, ("mlp", features, *sizes[1:-1], classes)))
        raise InvalidInput(
            f"model {name!r} for {features} features and {classes} classes",
            "ends that fit the data",
            f"Use {fitting!r}.",
        )
    return sizes


def usual_ends(name: str) -> Ends:
    """The ends that an ``mlp-...`` names.

    >>> usual_ends("mlp-784-300-10")
    Ends(input_shape=(784,), classes=10)
    """
    sizes = [int(size) for size in name.split("-")[1:]]
    return Ends((sizes[0],), sizes[-1])


def network(sizes: Sequence[int], make_layer: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    """`make_layer(inputs, outputs)` for each pair of neighbouring `sizes`, with ReLU between them.

    >>> [name for name, _ in network((4, 3, 2)).named_children()]
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


@architecture(LENET, Ends((784,), 10), widens=False)
def lenet_300_100(ends: Ends, width: float) -> nn.Sequential:
    """Hidden layers of 300 and 100: 266,200 weights and 410 biases on MNIST."""
    del width
    return network(layer_sizes(LENET, ends))
