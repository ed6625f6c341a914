"""Networks by name with the initial weights of a recipe, and what of them can be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from pollard import networks
from pollard.composites import composable, composed, matrices
from pollard.formats.topology import Topology
from pollard.networks import Ends, is_fully_connected
from pollard.networks.fully_connected import layer_shapes, layer_sizes, network
from pollard.nn import initialise
from pollard.nn.initialise import Initialiser
from pollard.selection import linear_layers
from pollard.streamed.birth import never_dense
from pollard.streamed.tensor import StreamedTensor

INITIALISERS: dict[str, Initialiser] = {name: law.kept for name, law in initialise.LAWS.items()}
# The network's own initial weights: what its modules draw for themselves.
OWN = "own"


def own_initialiser(model: str) -> str:
    """How the weights of the network called `model` are drawn where nobody says.

    >>> own_initialiser("lenet-300-100"), own_initialiser("vgg-16")
    ('lecun', 'own')
    """
    return "lecun" if is_fully_connected(model) else OWN


def initial_network(
    model: str, ends: Ends, initialiser: str, generator: torch.Generator, *, streamed: bool = False
) -> nn.Module:
    """The network called `model` between `ends`, all float32 on the CPU, drawn under the seed of `generator`.

    With another `initialiser` than its own, all weights that can be pruned are drawn by it, by their fan-in, and the biases
    beside them are 0. streamed: weights have no memory, where they may, and are drawn by position: the same laws, other numbers.
    Raises InvalidInput for a network that does not fit.

    >>> made = initial_network("lenet-300-100", Ends((784,), 10), "lecun", torch.Generator().manual_seed(0), streamed=True)
    >>> type(made.fc1.weight).__name__
    'StreamedTensor'
    """
    if is_fully_connected(model) and not streamed:
        return dense_network(layer_sizes(model, ends), initialiser, generator)
    seed = generator.initial_seed()
    # Modules draw from torch's global generator, and take its default dtype and device: both are the user's.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), never_dense(seed) if streamed else nullcontext():
        torch.manual_seed(seed)
        made = networks.build(model, ends).float()
    if initialiser != OWN:
        _draw_(made, initialiser, generator)
    return made


def dense_network(sizes: Sequence[int], initialiser: str, generator: torch.Generator) -> nn.Sequential:
    """Linear layers of `sizes` with ReLU between them, weights drawn by `initialiser`, biases 0."""
    return network(sizes, lambda inputs, outputs: _dense_layer(inputs, outputs, INITIALISERS[initialiser], generator))


def weight_shapes(model: str, ends: Ends) -> dict[str, tuple[int, int]]:
    """Name to shape `(rows, columns)` of every weight that can be pruned in the network called `model`.

    >>> weight_shapes("lenet-5-caffe", Ends((1, 28, 28), 10))
    {'conv1.linear': (20, 25), 'conv2.linear': (50, 500), 'fc1': (500, 800), 'fc2': (10, 500)}
    """
    if is_fully_connected(model):
        return layer_shapes(layer_sizes(model, ends))
    return prunable_shapes(initial_network(model, ends, OWN, torch.Generator().manual_seed(0)))


def prunable_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name to shape `(rows, columns)` of every weight of `model` that can be pruned."""
    return {name: (layer.out_features, layer.in_features) for name, layer in matrices(model).items()}


@torch.no_grad()
def _draw_(model: nn.Module, initialiser: str, generator: torch.Generator) -> None:
    # What it is composed of are views of its weights.
    for layer in linear_layers(composed(model)).values():
        if isinstance(layer.weight, StreamedTensor):
            initialise.LAWS[initialiser].fill_(layer.weight, layer.in_features, layer.out_features)
            continue
        drawn = INITIALISERS[initialiser](Topology.full((layer.out_features, layer.in_features)), generator)
        layer.weight.copy_(drawn.view_as(layer.weight))
    for module in {**linear_layers(model), **composable(model)}.values():
        for name, parameter in module.named_parameters():
            if "bias" in name:
                parameter.zero_()


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
