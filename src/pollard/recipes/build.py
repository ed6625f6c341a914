"""From a recipe to the network that will be trained: dense weights pruned, or a network that is born sparse."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pollard.errors import LayerCollapse
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.nn.surgery import densify_, sparsify_
from pollard.pruning.allocation import ALLOCATIONS, Layer, whole_grains
from pollard.pruning.decision import prune_at_init
from pollard.pruning.plan import Plan
from pollard.recipes.models import INITIALISERS, dense_network, layer_shapes, network
from pollard.recipes.recipe import Recipe
from pollard.training import Examples, generator


def build(
    recipe: Recipe, sizes: Sequence[int], examples: Examples, plan: Plan | None = None
) -> tuple[nn.Sequential, Plan | None]:
    """The network of `recipe` at step 0, and the plan it was made by; a `plan` made earlier is used as it is.

    sizes: neurons per layer, input and output included. examples: of the training set, for scores from gradients.
    With method ``random`` and an allocation that needs no scores, topologies come first and only kept weights are ever
    drawn. All else starts dense, is scored, and keeps the weights it was scored with. Method ``dense`` has no plan.
    """
    if recipe.method == "dense":
        return _dense(recipe, sizes), None
    if is_born_sparse(recipe):
        plan = plan or random_plan(recipe, layer_shapes(sizes))
        model = _born_sparse(recipe, sizes, plan)
        return (model if recipe.storage == "compressed" else sparsify_(densify_(model), plan, storage="masked")), plan
    model = _dense(recipe, sizes)
    if plan is None:
        plan = _scored_plan(recipe, model, layer_shapes(sizes), examples)
    return sparsify_(model, plan, storage=recipe.storage), plan


def is_born_sparse(recipe: Recipe) -> bool:
    """Whether the network of `recipe` never has a dense weight, not even before training."""
    return recipe.method == "random" and recipe.allocation != "global"


def layer_patterns(pattern: str, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Pattern]:
    """`pattern` for every layer whose rows it divides, unstructured for the others (an output layer of 10 rows, often).

    >>> {name: str(p) for name, p in layer_patterns("v4", {"fc1": (300, 784), "fc2": (10, 300)}).items()}
    {'fc1': 'v4', 'fc2': 'unstructured'}
    """
    wanted = Pattern.parse(pattern)
    return {name: wanted if shape[0] % wanted.rows == 0 else Pattern() for name, shape in shapes.items()}


def random_plan(recipe: Recipe, shapes: Mapping[str, tuple[int, int]]) -> Plan:
    """Random topologies at the densities that the allocation gives layers of `shapes`, exact in number."""
    patterns = layer_patterns(recipe.pattern, shapes)
    layers = {name: Layer(shape, patterns[name]) for name, shape in shapes.items()}
    counts = whole_grains(layers, ALLOCATIONS[recipe.allocation](layers, recipe.density), recipe.density)
    draw = generator(recipe.seed, "mask")
    topologies = {name: _random_topology(layer, counts[name], draw) for name, layer in layers.items()}
    plan = Plan(topologies, criterion="random", allocation=recipe.allocation, asked=recipe.density)
    if plan.collapsed:
        warnings.warn(
            f"nothing is kept of {', '.join(plan.collapsed)}: raise the density.", LayerCollapse, stacklevel=2
        )
    return plan


def _random_topology(layer: Layer, count: int, draw: torch.Generator) -> Topology:
    shape = (layer.shape[0], layer.shape[1])
    if count == 0:
        return Topology.from_positions(shape, layer.pattern, torch.empty(0, dtype=torch.int64))
    return Topology.random(shape, count / layer.grains, layer.pattern, draw)


def _dense(recipe: Recipe, sizes: Sequence[int]) -> nn.Sequential:
    return dense_network(sizes, recipe.initialiser, generator(recipe.seed, "weights"))


def _scored_plan(recipe: Recipe, model: nn.Module, shapes: Mapping[str, tuple[int, int]], examples: Examples) -> Plan:
    size = min(recipe.score_batch or recipe.batch_size, len(examples.x))
    chosen = torch.randperm(len(examples.x), generator=generator(recipe.seed, "scoring batch"))[:size]
    return prune_at_init(
        model,
        recipe.method,
        density=recipe.density,
        batch=(examples.x[chosen], examples.y[chosen]),
        allocation=recipe.allocation,
        pattern=layer_patterns(recipe.pattern, shapes),
        generator=generator(recipe.seed, "mask"),
    )


def _born_sparse(recipe: Recipe, sizes: Sequence[int], plan: Plan) -> nn.Sequential:
    topologies = iter(plan.values())
    draw = generator(recipe.seed, "weights")

    def layer(inputs: int, outputs: int) -> SparseLinear:
        initialiser = INITIALISERS[recipe.initialiser]
        made = SparseLinear(inputs, outputs, next(topologies), bias=False, initialiser=initialiser, generator=draw)
        made.bias = nn.Parameter(torch.zeros(outputs))
        return made

    return network(sizes, layer)
