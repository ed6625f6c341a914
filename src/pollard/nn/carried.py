"""What users hang on a layer and its parameters, taken along when another layer takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import nn

from pollard.composites.composite import kind_for
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.selection import listed

_SPARSE = (SparseLinear, MaskedLinear)
_CLASS = "_dense_class"
_REGISTERED = ("_parameters", "_buffers", "_modules")


def refuse_in_the_way(layers: Mapping[nn.Module, str]) -> None:
    """Raises InvalidInput for an attribute of a dense layer that means something else to a sparse one."""
    for module, name in layers.items():
        taken = [key for key in _extra(module) if isinstance(module, nn.Linear) and _means_something(key)]
        if taken:
            raise InvalidInput(
                f"layer {name!r} with {listed(taken)} of your own",
                "attributes that a sparse layer does not use itself: they are carried over",
                "Give them other names, or delete them first.",
            )


def refuse_bound(layers: Mapping[nn.Module, str]) -> None:
    """Raises InvalidInput for what was made of the layer itself and would go on computing with its weight."""
    for module, name in layers.items():
        if vars(module).get("_compiled_call_impl") is not None:
            raise InvalidInput(
                f"layer {name!r}, compiled by itself",
                "a layer as it was before layer.compile(): what was compiled computes with its weight",
                "Set layer._compiled_call_impl = None, and compile the layer in its place afterwards.",
            )
        bound = [key for key, value in vars(module).items() if getattr(value, "__self__", None) is module]
        if bound:
            raise InvalidInput(
                f"layer {name!r} with a method of its own as {listed(bound)}",
                "attributes that do not hold on to the layer",
                "Delete them, and set them on the layer in its place afterwards.",
            )


def refuse_hooked(layers: Mapping[nn.Module, str]) -> None:
    """Raises InvalidInput for a dense layer whose parameters have hooks: a gradient of another shape would come to them.

    Of what is taken apart these are its weights; what stands beside them stays the same parameter.
    """
    for module, name in layers.items():
        kind = kind_for(module)
        lost = {"weight", "bias"} if isinstance(module, nn.Linear) else set(kind.parts(module).values() if kind else ())
        for key in sorted(lost & {key for key, _ in module.named_parameters()}):
            parameter = module.get_parameter(key)
            if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):  # noqa: SLF001
                raise InvalidInput(
                    f"hooks on the {key} of layer {name!r}",
                    "parameters without: they would be lost",
                    "Remove the hooks, and register them on the new parameters afterwards.",
                )


def carry(old: nn.Module, new: nn.Module) -> None:
    """Gives `new` each attribute, parameter, buffer and module of `old` that its class does not have by itself.

    The class of a dense layer, where it is a subclass, goes along as well, and a layer that is dense again is of it.
    """
    if isinstance(old, nn.Linear) and type(old) is not nn.Linear:
        vars(new)[_CLASS] = type(old)
    for key in _extra(old):
        if key in old._buffers:  # noqa: SLF001
            new.register_buffer(key, old._buffers[key], persistent=key not in old._non_persistent_buffers_set)  # noqa: SLF001
        elif key in old._parameters:  # noqa: SLF001
            new.register_parameter(key, old._parameters[key])  # noqa: SLF001
        elif key in old._modules:  # noqa: SLF001
            new.add_module(key, old._modules[key])  # noqa: SLF001
        elif key == _CLASS and isinstance(new, nn.Linear):
            new.__class__ = vars(old)[key]
        else:
            vars(new)[key] = vars(old)[key]


def _extra(module: nn.Module) -> list[str]:
    registered = [key for kind in _REGISTERED for key in vars(module)[kind]]
    own = _owned().get(nn.Linear if isinstance(module, nn.Linear) else type(module), frozenset())
    return [key for key in (*registered, *vars(module)) if key not in own and key != "_compiled_call_impl"]


@cache
def _owned() -> dict[type[nn.Module], frozenset[str]]:
    """The names that a layer has from the start, by its kind."""
    # On no device first: no random numbers are drawn.
    dense = nn.Linear(1, 1, device="meta")
    dense.weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float32, device="cpu"))
    dense.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32, device="cpu"))
    fresh = [dense, *(kind.from_dense(dense, Topology.full((1, 1))) for kind in _SPARSE)]
    return {
        type(each): frozenset([*vars(each), *(key for held in _REGISTERED for key in vars(each)[held])])
        for each in fresh
    }


def _means_something(key: str) -> bool:
    return any(hasattr(kind, key) or key in _owned()[kind] for kind in _SPARSE)
