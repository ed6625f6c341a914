"""torch's optimizers, fused so that a step makes no temporaries, with decay on the weights that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pollard.errors import InvalidInput
from pollard.nn.linear import SparseLinear
from pollard.nn.surgery import sparse_layers
from pollard.training.options import TrainingOptions
from pollard.training.rounding import StochasticRounding
from pollard.training.wrapping import within


def make_optimizer(model: nn.Module, options: TrainingOptions) -> Optimizer:
    """The optimizer of `options` over the trainable parameters of `model`, weights first, all else in a second group.

    Weights are parameters named ``values`` (kept weights of a sparse layer), and those named ``weight`` with two or
    more dimensions; only they decay, unless `options.decay_all`. What is held in bfloat16 is rounded stochastically.

    >>> make_optimizer(nn.Linear(3, 2), TrainingOptions(weight_decay=0.1)).param_groups[1]["weight_decay"]
    0
    """
    weights, rest = split_parameters(model)
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": options.weight_decay},
        {"params": rest, "weight_decay": options.weight_decay if options.decay_all else 0},
    ]
    groups = [group for group in groups if group["params"]]
    rounds = options.precision == "bfloat16"
    # In half precision torch's fused SGD leaves all but the last few weights on CPUs as they are (pytorch issue 191763).
    sound = {torch.float32, torch.float64, *([torch.bfloat16] if rounds else [])}
    fused = all(parameter.dtype in sound for parameter in weights + rest)
    if options.optimizer == "sgd":
        made: Optimizer = SGD(groups, options.lr, momentum=options.momentum, nesterov=options.nesterov, fused=fused)
    else:
        kind = Adam if options.optimizer == "adam" else AdamW
        made = kind(groups, options.lr, betas=(options.beta1, options.beta2), fused=fused)
    return StochasticRounding(made, options.seed) if rounds else made


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable parameters of `model` in order: weights, and all else (biases, normalisations)."""
    weights: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            leaf = name.rpartition(".")[2]
            is_weight = leaf == "values" or (leaf == "weight" and parameter.ndim >= 2)
            (weights if is_weight else rest).append(parameter)
    return weights, rest


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: weights decay, biases and norms do not.

    Weights are the values of sparse layers, and parameters of two or more dimensions. The usual rule, ``p.ndim >= 2``, leaves
    the values out: they are one row of numbers. A group without parameters is left out.

    >>> from pollard.nn import SparseLinear
    >>> model = nn.Sequential(SparseLinear.random(8, 4, density=0.5), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> [(len(group["params"]), group["weight_decay"]) for group in decay_groups(model, 0.1)]
    [(2, 0.1), (4, 0.0)]
    """
    values = {id(layer.values) for layer in sparse_layers(model).values() if isinstance(layer, SparseLinear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter.ndim >= 2 or id(parameter) in values for parameter in trained]
    groups: list[dict[str, Any]] = [
        {"params": [p for p, decays in zip(trained, decayed, strict=True) if decays], "weight_decay": weight_decay},
        {"params": [p for p, decays in zip(trained, decayed, strict=True) if not decays], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def without_decay(optimizer: Optimizer, values: Iterable[Tensor]) -> str | None:
    """What to warn of where some of `values`, of sparse layers, do not decay and other weights do; None where all is well."""
    own = {id(parameter) for parameter in values if parameter.ndim == 1}
    left = sum(
        id(parameter) in own
        for group in optimizer.param_groups
        if not group.get("weight_decay")
        for parameter in group["params"]
    )
    if not left or not any(group.get("weight_decay") for group in optimizer.param_groups):
        return None
    return (
        f"the values of {left} sparse layers are in a group of the optimizer without weight_decay, where other groups have it: "
        "they have one dimension, and rules like p.ndim >= 2 pass them over. "
        "Make the optimizer from pollard.decay_groups(model, weight_decay)."
    )


def require_stepped(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """Raises InvalidInput for the first of the weights `parameters`, by layer name, that `optimizer` does not step."""
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in stepped:
            raise InvalidInput(
                f"an optimizer without the weight of layer {name!r}",
                "an optimizer of this model's parameters",
                "Make it from model.parameters(), after layers were made sparse; or leave the layer out with layers=.",
            )


def rebind(optimizer: Optimizer, old: Tensor, heirs: Sequence[tuple[Tensor, Callable[[Tensor], Tensor]]]) -> None:
    """Have `optimizer`, and what it is wrapped around, step `heirs` for `old`; each has what makes state of `old`'s shape fit it."""
    for each in within(optimizer):
        for group in each.param_groups:
            # In place: LBFGS holds on to the list.
            group["params"][:] = [
                new
                for parameter in group["params"]
                for new in ([heir for heir, _ in heirs] if parameter is old else [parameter])
            ]
        state = each.state.pop(old) if old in each.state else {}
        for new, convert in heirs if state else ():
            each.state[new] = {key: _inherited(entry, old, convert) for key, entry in state.items()}


def _inherited(entry: Any, old: Tensor, convert: Callable[[Tensor], Tensor]) -> Any:
    if not isinstance(entry, Tensor):
        return entry
    # A copy of a count of steps too: each heir takes its own.
    return convert(entry) if entry.dim() > 0 and entry.shape == old.shape else entry.clone()
