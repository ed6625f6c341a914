"""Which layers of a model a call speaks of: name filters, per-name choices, and the layers that may be replaced at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from pollard.errors import InvalidInput, NothingMatched

Choice = TypeVar("Choice")
LayerFilter = str | Sequence[str] | Callable[[str, nn.Module], bool] | None


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers of `model` that can be pruned and replaced, by name: modules whose type is exactly `nn.Linear`.

    A subclass may be read in ways a replacement does not serve (`nn.MultiheadAttention` reads its output projection's
    weight past the module), so it is left alone. A module used in several places appears once, under its first name.

    >>> list(linear_layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))))
    ['0', '2']
    """
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def select(modules: Mapping[str, nn.Module], layers: LayerFilter) -> list[str]:
    """The names of `modules` that `layers` selects, in order.

    `layers` is None (all), a callable `(name, module) -> bool`, or one or more shell-style name patterns, each of which
    must match; raises NothingMatched otherwise.

    >>> select({"fc1": nn.Linear(4, 3), "fc2": nn.Linear(3, 2), "head": nn.Linear(2, 2)}, ["fc*"])
    ['fc1', 'fc2']
    """
    if isinstance(layers, str):
        layers = [layers]
    if layers is None:
        names = list(modules)
    elif callable(layers):
        names = [name for name, module in modules.items() if layers(name, module)]
    else:
        require_matches(layers, modules)
        names = [name for name in modules if any(fnmatchcase(name, pattern) for pattern in layers)]
    if not names:
        raise NothingMatched(
            f"a selection of none of {len(modules)} layers: {listed(modules)}",
            "at least one layer",
            "Name the layers as model.named_modules() does, or leave layers= out to take all.",
        )
    return names


def per_layer(choices: Choice | Mapping[str, Choice], names: Iterable[str], default: Choice) -> dict[str, Choice]:
    """One choice for each of `names`: `choices` itself, or what it maps the name to; the last pattern that matches wins.

    Raises NothingMatched where a pattern matches no name. A name that no pattern matches gets `default`.

    >>> per_layer({"*": "v4", "head": "unstructured"}, ["body", "head"], default="unstructured")
    {'body': 'v4', 'head': 'unstructured'}
    """
    names = list(names)
    if not isinstance(choices, Mapping):
        return dict.fromkeys(names, choices)
    require_matches(choices, names)
    found = dict.fromkeys(names, default)
    for pattern, choice in choices.items():
        found.update({name: choice for name in names if fnmatchcase(name, pattern)})
    return found


def require_matches(patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raises NothingMatched for the first of `patterns` that matches none of `names`."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unmatched(pattern, names)


def unmatched(pattern: str, names: Iterable[str]) -> NothingMatched:
    """The error for a name or pattern that matches none of `names`; it lists the nearest of them.

    >>> unmatched("haed", ["fc1", "fc2", "head"]).expected
    "one of 'head'"
    """
    names = list(names)
    return NothingMatched(
        f"{pattern!r}, which matches no layer",
        f"one of {listed(get_close_matches(pattern, names, n=3, cutoff=0.5) or names)}",
        "Only linear layers count, under the names that model.named_modules() gives.",
    )


def refuse_tied(model: nn.Module, names: Iterable[str]) -> None:
    """Raises InvalidInput where a layer of `names` shares a parameter with another module: one of them would be cut loose."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(prefix=name, recurse=False):
            owners.setdefault(id(parameter), []).append(key)
    for name in names:
        for parameter in model.get_submodule(name).parameters(recurse=False):
            if len(owners[id(parameter)]) > 1:
                raise InvalidInput(
                    f"layer {name!r} with a parameter that is tied: {' = '.join(owners[id(parameter)])}",
                    "layers whose parameters are their own",
                    "Leave the layer out with layers=, or untie it first.",
                )


def listed(names: Iterable[str], at_most: int = 5) -> str:
    """Names for a message: quoted, at most `at_most` of them; `none` where there is none.

    >>> listed("abcdef", at_most=3)
    "'a', 'b', 'c', ... (6)"
    """
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:at_most])
    return shown or "none" if len(names) <= at_most else f"{shown}, ... ({len(names)})"
