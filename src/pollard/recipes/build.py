"""From a recipe to its network at one moment: dense, scored and pruned, or born sparse."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pollard.errors import InvalidInput, LayerCollapse
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.networks import Ends, is_fully_connected
from pollard.networks.fully_connected import network
from pollard.nn.initialise import Initialiser
from pollard.nn.linear import SparseLinear
from pollard.nn.surgery import Storage, densify_, sparsify_
from pollard.pruning.ablation import shuffle
from pollard.pruning.allocation import ALLOCATIONS, SHAPES, reads, whole_grains
from pollard.pruning.budget import Layer
from pollard.pruning.criteria import CRITERIA
from pollard.pruning.decision import prune
from pollard.pruning.isometry import restore_isometry
from pollard.pruning.orthogonal import exact_orthogonal
from pollard.pruning.plan import Plan, collapse_message
from pollard.pruning.refit import refit
from pollard.pruning.scoring import Rounds, Scoring
from pollard.recipes.models import (
    INITIALISERS,
    dense_network,
    initial_network,
    prunable_shapes,
    weight_shapes,
)
from pollard.recipes.recipe import Recipe
from pollard.training import Examples, generator
from pollard.training.placing import device_of
from pollard.training.precision import bring_

# Bounds what scoring holds in memory, whatever the size of the scoring batch.
SCORED_AT_ONCE = 1000
# What the initial weights of a re-initialised network are drawn for.
ANEW = "weights anew"


def build(recipe: Recipe, ends: Ends, examples: Examples, plan: Plan | None = None) -> tuple[nn.Module, Plan | None]:
    """The network of a `recipe` that prunes before training, and its plan; a `plan` made earlier is used as it is.

    ends: of the data. examples: of the training set, for scores from gradients; the network is where they are.
    With method ``random`` and an allocation that needs no scores, topologies of a network of linear layers alone come
    first and only kept weights are ever drawn. All else starts dense, is scored, and keeps the weights it was scored with. Method ``dense`` has no plan.
    """
    if recipe.method == "dense":
        return initial(recipe, ends, on=examples.x.device), None
    if is_born_sparse(recipe):
        plan = plan or random_plan(recipe, weight_shapes(recipe.model, ends))
        model = _sparse_network(plan, INITIALISERS[recipe.initialiser], generator(recipe.seed, "weights"))
        return _stored_as(recipe.storage, model, plan).to(examples.x.device), plan
    scored = weights = initial(recipe, ends, on=examples.x.device)
    if recipe.ablation == "reinitialise":
        weights = initial(recipe, ends, ANEW, on=examples.x.device)
    plan = plan or finished(recipe, decide(recipe, scored, examples), scored, weights, examples)
    return sparsify_(weights, plan, storage=recipe.storage).to(examples.x.device), plan


def is_born_sparse(recipe: Recipe) -> bool:
    """Whether the network of `recipe` never has a dense weight, not even before training."""
    untrained = recipe.score_at == 0.0 and not recipe.rewinds
    as_it_is = not recipe.ablation and not recipe.repair
    drawn = (
        is_fully_connected(recipe.model) and recipe.rule == "random" and reads(ALLOCATIONS[recipe.allocation]) == SHAPES
    )
    return drawn and untrained and as_it_is and not recipe.never_dense


def initial(recipe: Recipe, ends: Ends, purpose: str = "weights", *, on: torch.device | str = "cpu") -> nn.Module:
    """The network before training; another `purpose` draws other weights. It is dense and `on` a device, or has weights without
    memory, which are of the host alone.
    """
    draw = generator(recipe.seed, purpose)
    made = initial_network(recipe.model, ends, recipe.initialiser, draw, streamed=recipe.never_dense)
    return made if recipe.never_dense else made.to(on)


def decide(
    recipe: Recipe,
    model: nn.Module,
    examples: Examples,
    *,
    density: float | None = None,
    within: Plan | None = None,
    purpose: str = "mask",
    resume: Path | None = None,
) -> Plan:
    """What the method of `recipe` keeps of dense `model`, at `density` instead of its own, of what `within` had kept.

    resume: a file for what rounds leave, where there is more than one.
    """
    count = recipe.score_rounds or CRITERIA[recipe.rule].rounds
    x, y = scoring_batch(recipe, examples)
    return prune(
        model,
        recipe.rule,
        density=recipe.first_density if density is None else density,
        batch=(x.to(device_of(model)), y.to(device_of(model))),
        allocation=recipe.allocation,
        pattern=layer_patterns(recipe.pattern, prunable_shapes(model)),
        generator=generator(recipe.seed, purpose),
        scoring=Scoring(
            mode=recipe.score_mode or None, temperature=recipe.temperature or None, chunk_size=SCORED_AT_ONCE
        ),
        rounds=Rounds(count, resume=resume if count > 1 else None),
        invert=recipe.ablation == "invert",
        within=within,
    )


def finished(
    recipe: Recipe, plan: Plan, scored: nn.Module, weights: nn.Module, examples: Examples, *, last: bool = True
) -> Plan:
    """`plan` for the dense network whose `weights` will be trained; after the `last` pruning, ablated and repaired.

    Values that a criterion computed belong to the weights it has `scored`: other weights go without them.
    """
    if weights is not scored or (last and recipe.ablation == "restore"):
        plan = replace(plan, updated={})
    if last and recipe.ablation == "shuffle":
        plan = shuffle(plan, generator(recipe.seed, "shuffle"))
    if last and recipe.repair == "refit":
        return refit(plan, weights, scoring_batch(recipe, examples), chunk_size=SCORED_AT_ONCE)
    if last and recipe.repair == "orthogonal":
        return exact_orthogonal(plan, generator=generator(recipe.seed, "orthogonal"))
    return restore_isometry(plan, weights) if last and recipe.repair == "isometry" else plan


def trained_network(
    recipe: Recipe, plan: Plan | None, state: Mapping[str, Tensor], ends: Ends | None = None
) -> nn.Module:
    """The network of a `plan`, None for a dense one, with the parameters and buffers of `state`, in the recipe's precision.

    ends: of the data; those of linear layers alone can be read off their weights, as files of before they were told want it.
    """
    if ends is None or is_fully_connected(recipe.model):
        model = _linear_network(recipe, plan, state)
    else:
        model = initial(recipe, ends)
        model = model if plan is None else sparsify_(model, plan, storage=recipe.storage)
    model.load_state_dict(state)
    bring_(model, recipe.precision)
    return model


def _linear_network(recipe: Recipe, plan: Plan | None, state: Mapping[str, Tensor]) -> nn.Module:
    """Linear layers that `state` fits; those of a `plan` without a dense weight."""
    if plan is None:
        weights = [state[f"fc{number}.weight"] for number in range(1, len(state) // 2 + 1)]
        shapes = [weight.shape for weight in weights]
        return dense_network(
            [shapes[0][1], *(shape[0] for shape in shapes)], recipe.initialiser, generator(recipe.seed, "weights")
        )
    model = _sparse_network(
        plan, lambda topology, _: torch.zeros(topology.nnz, dtype=torch.float32, device="cpu"), torch.Generator()
    )
    return _stored_as(recipe.storage, model, plan)


def layer_patterns(pattern: str, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Pattern]:
    """`pattern` for every layer whose rows it divides, unstructured for the others (an output layer of 10 rows, often).

    >>> {name: str(p) for name, p in layer_patterns("v4", {"fc1": (300, 784), "fc2": (10, 300)}).items()}
    {'fc1': 'v4', 'fc2': 'unstructured'}
    """
    wanted = Pattern.parse(pattern)
    return {name: wanted if wanted.fits(shape) else Pattern() for name, shape in shapes.items()}


def random_plan(recipe: Recipe, shapes: Mapping[str, tuple[int, int]]) -> Plan:
    """Random topologies at the densities that the allocation gives layers of `shapes`, exact in number."""
    patterns = layer_patterns(recipe.pattern, shapes)
    layers = {name: Layer(shape, patterns[name]) for name, shape in shapes.items()}
    density = recipe.first_density
    counts = whole_grains(layers, ALLOCATIONS[recipe.allocation](layers, density), density)
    draw = generator(recipe.seed, "mask")
    topologies = {name: _random_topology(layer, counts[name], draw) for name, layer in layers.items()}
    plan = Plan(topologies, criterion="random", allocation=recipe.allocation, asked=density)
    if plan.collapsed:
        warnings.warn(collapse_message(plan), LayerCollapse, stacklevel=2)
    return plan


def _random_topology(layer: Layer, count: int, draw: torch.Generator) -> Topology:
    shape = (layer.shape[0], layer.shape[1])
    if count == 0:
        return Topology.from_positions(shape, layer.pattern, torch.empty(0, dtype=torch.int64, device="cpu"))
    return Topology.random(shape, count / layer.grains, layer.pattern, draw)


def scoring_batch(recipe: Recipe, examples: Examples) -> tuple[Tensor, Tensor]:
    """What `recipe` takes scores on: so many of `examples`, or so many of each class."""
    order = torch.randperm(
        len(examples.x), generator=generator(recipe.seed, "scoring batch"), dtype=torch.int64, device="cpu"
    )
    labels = examples.y.cpu()[order]
    if recipe.score_per_class:
        chosen = _of_each_class(labels, recipe.score_per_class)
    elif CRITERIA[recipe.rule].per_class and not recipe.score_batch:
        least = int(labels.unique(return_counts=True)[1].min())
        chosen = _of_each_class(labels, min(CRITERIA[recipe.rule].per_class, least))
    else:
        chosen = torch.arange(min(recipe.score_batch or recipe.batch_size, len(order)), dtype=torch.int64, device="cpu")
    places = order[chosen].to(examples.x.device)
    return examples.x[places], examples.y[places]


def _of_each_class(labels: Tensor, count: int) -> Tensor:
    """The places of the first `count` of each label, ascending; raises InvalidInput where a class has fewer.

    >>> _of_each_class(torch.tensor([1, 1, 0, 1, 0]), 2)
    tensor([0, 1, 2, 4])
    """
    found = [torch.nonzero(labels == label).flatten()[:count] for label in labels.unique()]
    least = min(len(places) for places in found)
    if least < count:
        raise InvalidInput(
            f"score_per_class {count}, where a class has {least} training examples",
            f"at most {least}",
            "Lower it, or take score_batch examples as they come.",
        )
    return torch.cat(found).sort().values


def _sparse_network(plan: Plan, initialiser: Initialiser, draw: torch.Generator) -> nn.Sequential:
    """A network that is born sparse, biases 0."""
    topologies = iter(plan.values())

    def layer(inputs: int, outputs: int) -> SparseLinear:
        made = SparseLinear(inputs, outputs, next(topologies), bias=False, initialiser=initialiser, generator=draw)
        made.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float32, device="cpu"))
        return made

    shapes = [topology.shape for topology in plan.values()]
    return network([shapes[0][1], *(shape[0] for shape in shapes)], layer)


def _stored_as(storage: Storage, model: nn.Sequential, plan: Plan) -> nn.Sequential:
    return model if storage == "compressed" else sparsify_(densify_(model), plan, storage=storage)
