"""Models in which modules that hold matrices are rebuilt of linear layers: as a copy to look at, or in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Self

from torch import Tensor, nn

from pollard.composites.composite import COMPOSITES, Composite, dotted, kind_for
from pollard.copies import copied
from pollard.errors import NothingMatched
from pollard.references import Reference, references, replace
from pollard.selection import (
    OF_ITS_OWN,
    LayerFilter,
    is_sparse,
    kind_of,
    linear_layers,
    listed,
    matches,
    name_patterns,
    weight_layers,
)

Heir = tuple[nn.Parameter, Callable[[Tensor], Tensor]]


def composable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` that can be rebuilt, by name; one that is used in several places under its first.

    What shares a parameter with another module stays as it is, and so does one whose weight is made anew at each call, by a
    parametrization or a hook, or is lazy still, or what has other modules with numbers in it.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(4, 2))
    >>> list(composable(model))
    ['0']
    """
    owners = _owners(model)
    return {name: module for name, module in model.named_modules() if _refusal(module, owners) is None}


def refuse_dense(model: nn.Module, layers: LayerFilter) -> None:
    """Raises NothingMatched where a pattern of `layers` matches nothing but weights that can only stay dense, and says why.

    >>> refuse_dense(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Linear(4, 2)), "0")
    Traceback (most recent call last):
    pollard.errors.NothingMatched: got layer '0' of class Conv2d, which stays dense: groups=8; expected one of '1'. Leave it out.
    """
    if layers is None or callable(layers):
        return
    linear, held, owners = linear_layers(model), weight_layers(model), _owners(model)
    dense = {name: module for name, module in held.items() if name not in linear and not is_sparse(module)}
    why = {name: _refusal(module, owners) for name, module in dense.items()}
    for pattern in name_patterns(layers):
        matched = [name for name in held if matches(name, pattern)]
        if matched and all(why.get(name) for name in matched):
            raise NothingMatched(
                f"layer {matched[0]!r} of class {kind_of(held[matched[0]])}, which stays dense: {why[matched[0]]}",
                f"one of {listed(matrices(model))}",
                "Leave it out.",
            )


def _owners(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its id."""
    return Counter(id(each) for module in model.modules() for each in module.parameters(recurse=False))


def _refusal(module: nn.Module, owners: Mapping[int, int]) -> str | None:
    """Why `module` cannot be rebuilt; None where it can."""
    kind = kind_for(module)
    if kind is None:
        return _unserved(type(module))
    told = kind.refusal(module)
    if told is not None:
        return told
    held = dict(module.named_parameters(remove_duplicate=False))
    own = set(kind.parts(module).values())
    biases = {f"{part}.bias" for part in kind.parts(module)}
    if not own or not own <= held.keys():
        return "its weight is made anew at each call"
    # A subclass with modules of its own in it, which nothing here would take along.
    if any("." in name for name in {*held, *(name for name, _ in module.named_buffers())} - own - biases):
        return "it has modules of its own"
    if any(isinstance(each, nn.parameter.UninitializedParameter) for each in held.values()):
        return "it is lazy and has seen no input yet"
    return None if all(owners[id(each)] == 1 for each in held.values()) else "it shares a parameter with another module"


def _unserved(kind: type[nn.Module]) -> str:
    served = [base.__name__ for base in kind.__mro__ if dotted(base) in COMPOSITES]
    if served:
        return f"its forward is not that of {served[0]}"
    if issubclass(kind, nn.Linear):
        return OF_ITS_OWN
    return "its kind is not rebuilt of linear layers"


def matrices(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of `model`, by name: those that are there, and those that composable modules would be rebuilt of.

    >>> list(matrices(nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2))))
    ['0.ih_l0', '0.hh_l0', '1']
    """
    linear, whole = linear_layers(model), composable(model)
    found: dict[str, nn.Linear] = {}
    for path, module in model.named_modules():
        if path in whole:
            found |= parts_of(path, module)
        elif path in linear:
            found[path] = linear[path]
    return found


def parts_of(path: str, module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that the module at `path` would be rebuilt of, by name."""
    made = _rebuilt(module)
    return {_joined(path, part): layer for part, layer in made.named_children() if isinstance(layer, nn.Linear)}


def holders(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules of `model` that are to be rebuilt for linear layers of these `names` to be there.

    >>> list(holders(nn.Sequential(nn.LSTM(3, 4), nn.GRU(4, 4)), ["0.hh_l0"]))
    ['0']
    """
    names = set(names)
    return {
        path: module for path, module in composable(model).items() if not names.isdisjoint(_part_names(path, module))
    }


def composed(model: nn.Module, names: Iterable[str] | None = None) -> nn.Module:
    """`model` with all that is composable rebuilt, or what linear layers of `names` take: a copy that shares its tensors.

    Where there is nothing to rebuild it is `model` itself. Raises InvalidInput where the model cannot be copied.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> apart = composed(model)
    >>> apart[0].linear.weight.shape, apart[0].weight.data_ptr() == model[0].weight.data_ptr()
    (torch.Size([8, 27]), True)
    """
    paths = composable(model) if names is None else holders(model, names)
    if not paths:
        return model
    apart = shared_copy(model, next(iter(paths)))
    made = {path: _rebuilt(apart.get_submodule(path)) for path in paths}
    if "" in made:
        return made[""]
    for path, new in made.items():
        put(apart, apart.get_submodule(path), new)
    return apart


def shared_copy(model: nn.Module, name: str) -> nn.Module:
    """A copy of `model` that shares its tensors, for its module `name` to be taken apart in; raises InvalidInput where it has none."""
    return copied(
        model,
        f"with {name!r} to be taken apart",
        shared=(*model.parameters(), *model.buffers()),
        fix="Leave out what is not nn.Linear with layers=, or keep what cannot be copied out of the model.",
    )


def _rebuilt(module: nn.Module) -> Composite:
    kind = kind_for(module)
    assert kind is not None
    return kind(module)


def axes_of(model: nn.Module, name: str) -> tuple[int, ...]:
    """The sizes of the axes of a linear layer's weight: `(out, in)`, of a convolution `(out, in, height, width)`.

    >>> axes_of(composed(nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU())), "0.linear")
    (8, 3, 5, 5)
    """
    path, _, part = name.rpartition(".")
    layer, holder = model.get_submodule(name), model.get_submodule(path)
    matrix = int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]  # modules hold anything
    return holder.axes(part, matrix) if isinstance(holder, Composite) else matrix


class Composing:
    """Modules `paths` of `model`, rebuilt in place; undone where the block fails, so that nothing has changed then."""

    def __init__(self, model: nn.Module, paths: Mapping[str, nn.Module]) -> None:
        self.model, self.whole = model, dict(paths)
        self.made: dict[str, Composite] = {}
        # Parameters that are taken apart, each with the weights that come of it, and how state of its shape becomes theirs.
        self.heirs: list[tuple[nn.Parameter, list[Heir]]] = []

    def __enter__(self) -> Self:
        self.made = {path: _rebuilt(module) for path, module in self.whole.items()}
        self.heirs = [pair for path, module in self.whole.items() for pair in _heirs(module, self.made[path])]
        for path, module in self.whole.items():
            put(self.model, module, self.made[path])
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            for path, module in self.made.items():
                put(self.model, module, self.whole[path])


def whole_again(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The modules that `put_together` puts back into one where linear layers of `names` are dense, or have become so.

    >>> whole_again(composed(nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2))), [])
    ['0']
    """
    dense = {name for name, module in model.named_modules() if type(module) is nn.Linear} | set(names)
    rebuilt = {path: module for path, module in model.named_modules() if isinstance(module, Composite)}
    return [
        path
        for path, module in rebuilt.items()
        if module is not model and all(_joined(path, part) in dense for part in module._parts)  # noqa: SLF001 - a layer may hang on it as well
    ]


def put_together(model: nn.Module) -> None:
    """Puts what was rebuilt back into one, in place, wherever all parts are dense."""
    for module in [model.get_submodule(path) for path in whole_again(model, [])]:
        assert isinstance(module, Composite)
        put(model, module, module.whole())


def put(model: nn.Module, old: nn.Module, new: nn.Module, found: Iterable[Reference] | None = None) -> None:
    """Puts `new` wherever `model` holds `old`; `found` are the places besides submodules, if they are known."""
    found = references(model, [old]) if found is None else found
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(name, new)
    replace(found, {old: new})


def _heirs(whole: nn.Module, made: Composite) -> list[tuple[nn.Parameter, list[Heir]]]:
    found: dict[str, list[Heir]] = {}
    for part, name in made.parts(whole).items():
        found.setdefault(name, []).append((made.get_parameter(f"{part}.weight"), partial(made.matrix, part)))
    return [(whole.get_parameter(name), heirs) for name, heirs in found.items()]


def _part_names(path: str, module: nn.Module) -> list[str]:
    kind = kind_for(module)
    return [] if kind is None else [_joined(path, part) for part in kind.parts(module)]


def _joined(path: str, part: str) -> str:
    return f"{path}.{part}".lstrip(".")


__all__ = [
    "Composing",
    "axes_of",
    "composable",
    "composed",
    "holders",
    "matrices",
    "parts_of",
    "put",
    "put_together",
    "refuse_dense",
    "shared_copy",
    "whole_again",
]
