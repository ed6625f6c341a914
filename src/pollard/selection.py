"""Which layers of a model a call speaks of: name filters, per-name choices, and the layers that may be replaced at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize, prune

from pollard.errors import InvalidInput, NothingMatched

Choice = TypeVar("Choice")
LISTED = 5  # names that a message shows
OF_ITS_OWN = "a subclass of nn.Linear with more of its own than how it is constructed"
# What a subclass may define that is an `nn.Linear` constructed in its own way, and Python's own notes on a class.
_CONSTRUCTION = {
    "__init__",
    "reset_parameters",
    "extra_repr",
    "__repr__",
    "__constants__",
    "__doc__",
    "__annotations__",
}
_CONSTRUCTION |= {"__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__orig_bases__"}
_CONSTRUCTION |= {"__annotate_func__", "__annotations_cache__", "__parameters__"}
LayerFilter = str | Sequence[str] | Callable[[str, nn.Module], bool] | None

# What hooks of torch make a parameter anew at each call, by the module that they are of, and how to be rid of them.
_REMOVERS = {
    "torch.nn.utils.weight_norm": "torch.nn.utils.remove_weight_norm",
    "torch.nn.utils.spectral_norm": "torch.nn.utils.remove_spectral_norm",
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove",
}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers of `model` that can be pruned and replaced, by name: `nn.Linear`, and subclasses that are only constructed otherwise.

    A subclass with anything else of its own may compute or be used in ways that a replacement does not serve, and is left
    alone. A linear layer that is lazy still, or parametrized, is among them, to be
    refused by `refuse_unready` rather than passed over. A module used in several places appears once, under its first name.

    >>> list(linear_layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))))
    ['0', '2']
    """
    return {name: module for name, module in model.named_modules() if is_linear(module)}


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is an `nn.Linear`, or of a subclass that defines no more than how it is constructed, drawn anew and shown.

    >>> class Small(nn.Linear):
    ...     def __init__(self, *args):
    ...         super().__init__(*args)
    ...         nn.init.normal_(self.weight, std=0.02)
    >>> class Shifted(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x) + 1
    >>> is_linear(Small(4, 3)), is_linear(Shifted(4, 3))
    (True, False)
    """
    kind = _bare_type(module)
    if kind in {nn.Linear, nn.LazyLinear}:
        return True
    # Of torch's attention, which reads its weight past the module.
    if not issubclass(kind, nn.Linear) or kind is NonDynamicallyQuantizableLinear:
        return False
    own = set(kind.__mro__) - set(nn.Linear.__mro__)
    return all(name in _CONSTRUCTION for each in own for name in vars(each))


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` that hold a weight of two axes or more, by name, whatever their kind; norms hold none.

    A module within one of torch's attention layers belongs to that.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 4), nn.LayerNorm(4), nn.MultiheadAttention(4, 2))
    >>> {name: kind_of(layer) for name, layer in weight_layers(model).items()}
    {'0': 'Embedding', '1': 'LSTM', '3': 'MultiheadAttention'}
    """
    found: dict[str, nn.Module] = {}
    within: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in within:
            continue
        if isinstance(module, nn.MultiheadAttention):
            within.update(module.modules())
        if _holds_weight(module):
            found[name] = module
    return found


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, before torch parametrized it."""
    return _bare_type(module).__name__


def is_sparse(module: nn.Module) -> bool:
    """Whether a layer keeps a topology: told by what it has, since what to keep is decided without knowing its class."""
    return isinstance(getattr(type(module), "topology", None), property)


def masked_by_torch(module: nn.Module) -> list[str]:
    """The parameters of `module` over which `torch.nn.utils.prune` holds a mask.

    >>> layer = nn.Linear(4, 3)
    >>> masked_by_torch(layer), masked_by_torch(prune.l1_unstructured(layer, "weight", 0.5))
    ([], ['weight'])
    """
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001 - torch has no other way to see them
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]  # noqa: SLF001


def is_made_anew(module: nn.Module) -> bool:
    """Whether the weight of a layer, dense or sparse, is no parameter of its own, but a tensor that a hook may have made."""
    return all(module._parameters.get(own) is None for own in ("weight", "values"))  # noqa: SLF001 - the layer's own, and nothing within


def counted(kinds: Mapping[str, int]) -> str:
    """Kinds of layers for a message, the most frequent first.

    >>> counted({"LSTM": 1, "Conv2d": 5})
    'Conv2d x5, LSTM'
    """
    return (
        ", ".join(f"{kind} x{count}" if count > 1 else kind for kind, count in Counter(kinds).most_common()) or "none"
    )


def _bare_type(module: nn.Module) -> type[nn.Module]:
    kind = type(module)
    # torch gives a parametrized module a class of its own, made from the one it had.
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def _holds_weight(module: nn.Module) -> bool:
    if is_sparse(module):
        return True
    if "Norm" in kind_of(module):
        return False
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return True
    made = getattr(module, "parametrizations", {})
    return "weight" in made or any(
        "weight" in name and parameter.dim() > 1 for name, parameter in module.named_parameters(recurse=False)
    )


def require_module(model: object) -> None:
    """Raises InvalidInput for a model that is none.

    >>> require_module(nn.Linear(4, 3))
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(
            f"a model that is a {type(model).__name__}", "an nn.Module", "Pass the model itself, as the first argument."
        )


def require_prunable(model: nn.Module) -> dict[str, nn.Linear]:
    """`linear_layers(model)`; raises NothingMatched, which says what there is instead, where there is none."""
    linear = linear_layers(model)
    if linear:
        return linear
    layers = weight_layers(model).values()
    there = counted(Counter(map(kind_of, layers)))
    own = sorted({kind_of(layer) for layer in layers if isinstance(layer, nn.Linear)})
    why = f" {', '.join(own)}: {OF_ITS_OWN}." if own else ""
    raise NothingMatched(
        f"a model with nothing to prune: its weight layers are {there}",
        "at least one linear, convolutional, recurrent or attention layer",
        "Served are nn.Linear, convolutions without groups, recurrent modules and their cells, attention and "
        f"nn.Bilinear, where their weights are their own: neither tied nor made anew at each call.{why} "
        "Layers in a plain list are seen only if they are registered too: use nn.ModuleList.",
    )


def refuse_unready(model: nn.Module, names: Iterable[str], *, masks: bool = False) -> None:
    """Raises InvalidInput where a layer of `names` has no weight of its own yet, or any more: lazy, parametrized, hooked.

    masks: those of `torch.nn.utils.prune` are all right.
    """
    for name in names:
        module = model.get_submodule(name)
        found = _not_own(module, masked_by_torch(module) if masks else [])
        if found is not None:
            what, fix = found
            raise InvalidInput(
                f"layer {name!r} {what}",
                "a layer whose weight is a parameter of its own",
                f"{fix}, or leave the layer out with layers=.",
            )


def refuse_meta(layers: Mapping[str, nn.Module]) -> None:
    """Raises InvalidInput where one of `layers`, given by name, is on the meta device."""
    for name, layer in layers.items():
        if any(parameter.is_meta for parameter in layer.parameters(recurse=False)):
            raise InvalidInput(
                f"layer {name!r} on meta, which holds no numbers",
                "a layer with a weight",
                "Load a sparse state with pollard.load_sparse(model, state), or give it memory with to_empty() first.",
            )


def _not_own(module: nn.Module, masked: Sequence[str]) -> tuple[str, str] | None:
    """What is the matter with a layer's weight, and what to do about it; None for nothing. masked: parameters whose masks are all right."""
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "that is lazy and has seen no input yet", "Call the model once on a batch: its weight is made then"
    for name, chain in getattr(module, "parametrizations", {}).items():
        by = ", ".join(type(each).__name__.lstrip("_") for each in chain)
        fix = f"Call torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r}) first, with layer = the module"
        return f"whose {name} is parametrized by {by}: it is made anew at each call", fix
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001 - torch has no other way to see them
        for home in (base.__module__ for base in type(hook).__mro__):
            made = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
            if home in _REMOVERS and made not in masked:
                fix = f"Call {_REMOVERS[home]}(layer, {made!r}) first, with layer = the module"
                return f"under {home}, which makes its {made} anew at each call", fix
    if is_made_anew(module) and not {"weight", "values"} & set(masked):
        return "whose weight is no parameter", "Give it one: layer.weight = torch.nn.Parameter(weight)"
    return None


def select(modules: Mapping[str, nn.Module], layers: LayerFilter) -> list[str]:
    """The names of `modules` that `layers` selects, in order.

    `layers` is None (all), a callable `(name, module) -> bool`, or one or more shell-style name patterns, each of which
    must match a layer or a module that it is within; raises NothingMatched otherwise.

    >>> select({"fc1": nn.Linear(4, 3), "fc2": nn.Linear(3, 2), "head": nn.Linear(2, 2)}, ["fc*"])
    ['fc1', 'fc2']
    """
    if layers is None:
        names = list(modules)
    elif callable(layers) and not isinstance(layers, type):
        names = [name for name, module in modules.items() if layers(name, module)]
    else:
        patterns = name_patterns(layers)
        require_matches(patterns, modules)
        names = [name for name in modules if any(matches(name, pattern) for pattern in patterns)]
    if not names:
        raise NothingMatched(
            f"a selection of none of {len(modules)} layers: {listed(modules)}",
            "at least one layer",
            "Name the layers as model.named_modules() does, or leave layers= out to take all.",
        )
    return names


def name_patterns(layers: object) -> list[str]:
    """The patterns that `layers` is, or holds; raises InvalidInput where it is something else.

    >>> name_patterns("fc*"), name_patterns(["fc1", "fc2"])
    (['fc*'], ['fc1', 'fc2'])
    """
    patterns = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Iterable) else []
    if not all(isinstance(pattern, str) for pattern in patterns) or not isinstance(layers, Iterable):
        raise InvalidInput(
            f"layers={layers!r}",
            "names or name patterns of layers, or a callable (name, module) -> bool",
            "Name them as model.named_modules() does.",
        )
    return patterns


def matches(name: str, pattern: str) -> bool:
    """Whether a shell-style pattern matches the name of a layer, or of a module that it is within.

    >>> matches("body.fc1", "*.fc?"), matches("body.fc1", "body"), matches("body.fc1", "fc1")
    (True, True, False)
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:depth]), pattern) for depth in range(len(parts), 0, -1))


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
        found.update({name: choice for name in names if matches(name, pattern)})
    return found


def require_matches(patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raises NothingMatched for the first of `patterns` that matches none of `names`."""
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
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
        "Layers go by the names that model.named_modules() gives; those within other weight layers follow a dot, as in "
        "'conv.linear' and 'lstm.hh_l0'.",
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


def listed(names: Iterable[str]) -> str:
    """Names for a message: quoted, at most five of them; `none` where there is none.

    >>> listed("abcdef")
    "'a', 'b', 'c', 'd', 'e', ... (6)"
    """
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:LISTED])
    return shown or "none" if len(names) <= LISTED else f"{shown}, ... ({len(names)})"
