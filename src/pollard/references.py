"""Where else than as a submodule a model holds on to a layer: lists, dicts, attributes, functions it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from pollard.errors import InvalidInput

# What torch keeps in a module by itself; layers there are found as submodules.
_TORCHS = frozenset(vars(nn.Module()))
_PLAIN = (int, float, complex, bool, str, bytes, type(None))


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """One place that holds a layer: `put` sets another there; None where nothing can be set.

    where: for people, as in `fcs[0]`.
    """

    layer: nn.Module
    where: str
    put: Callable[[nn.Module], None] | None


def references(model: nn.Module, layers: Iterable[nn.Module]) -> list[Reference]:
    """Where `model` holds any of `layers` besides its submodules.

    Looked at: attributes of every module, and lists, tuples, dicts, sets, bound methods, partial functions and closures
    that they hold, to any depth.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> model.order = [model[0]]
    >>> [reference.where for reference in references(model, [model[0]])]
    ['order[0]']
    """
    return list(_Search(model, set(layers)).run())


def replace(found: Iterable[Reference], new: Mapping[nn.Module, nn.Module]) -> None:
    """Puts for each layer its `new` one, wherever it was found."""
    for reference in found:
        if reference.put is not None:
            reference.put(new[reference.layer])


def refuse_fixed(found: Iterable[Reference], names: Mapping[nn.Module, str]) -> None:
    """Raises InvalidInput where a layer is held in a place that cannot be given another: it would go on being used."""
    for reference in found:
        if reference.put is None:
            raise InvalidInput(
                f"layer {names[reference.layer]!r} held in {reference.where}, which would go on using the old one",
                "layers that are held as submodules, or in lists, tuples, dicts and attributes of modules",
                "Look the layer up when it is called, as in self.fc1(x), or leave it out with layers=.",
            )


class _Search:
    def __init__(self, model: nn.Module, layers: set[nn.Module]) -> None:
        self.layers = layers
        self.registered = dict.fromkeys(model.modules())
        self.names = {module: name for name, module in model.named_modules()}
        self.seen: set[int] = set()

    def run(self) -> Iterator[Reference]:
        for module in self.registered:
            if module not in self.layers:
                yield from self._attributes(module, self.names[module])

    def _attributes(self, module: nn.Module, path: str) -> Iterator[Reference]:
        own = vars(module)
        for key in [key for key in own if key not in _TORCHS]:
            yield from self._held(own[key], f"{path}.{key}".lstrip("."), partial(own.__setitem__, key))

    def _held(self, value: Any, where: str, put: Callable[[Any], None] | None) -> Iterator[Reference]:
        if isinstance(value, _PLAIN):
            return
        if isinstance(value, nn.Module) and value in self.layers:
            yield Reference(value, where, put)
            return
        if id(value) in self.seen:
            return
        self.seen.add(id(value))
        yield from self._inside(value, where, put)

    def _inside(self, value: Any, where: str, put: Callable[[Any], None] | None) -> Iterator[Reference]:
        if isinstance(value, nn.Module):
            yield from self._unregistered(value, where)
        elif isinstance(value, list | dict):
            items = enumerate(value) if isinstance(value, list) else list(value.items())
            for key, each in items:
                yield from self._held(each, f"{where}[{key!r}]", partial(value.__setitem__, key))
        elif isinstance(value, tuple):
            parts = list(value)  # shared, so that each put keeps what the one before has put
            for index, each in enumerate(value):
                replaced = None if put is None else partial(_put_in_tuple, put, type(value), parts, index)
                yield from self._held(each, f"{where}[{index}]", replaced)
        elif isinstance(value, set | frozenset):
            for each in value:
                yield from self._held(each, f"{where}, a set", None)
        else:
            yield from self._called(value, where)

    def _unregistered(self, module: nn.Module, where: str) -> Iterator[Reference]:
        """Within a module that stands in a plain list, with layers that the model knows too."""
        if module not in self.registered:
            yield from self._attributes(module, where)
            children = module._modules  # noqa: SLF001 - its dict is what is to be changed
            for key, child in list(children.items()):
                yield from self._held(child, f"{where}.{key}", partial(children.__setitem__, key))

    def _called(self, value: Any, where: str) -> Iterator[Reference]:
        if isinstance(value, MethodType):
            yield from self._held(value.__self__, f"{where}, a bound method", None)
        elif isinstance(value, partial):
            for each in (value.func, *value.args, *value.keywords.values()):
                yield from self._held(each, f"{where}, a partial function", None)
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                yield from self._held(_content(cell), f"{where}, a closure", None)
            for default in value.__defaults__ or ():
                yield from self._held(default, f"{where}, a default argument", None)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _put_in_tuple(
    put: Callable[[Any], None], kind: type[tuple[Any, ...]], parts: list[Any], index: int, new: nn.Module
) -> None:
    parts[index] = new
    put(kind(*parts) if hasattr(kind, "_fields") else kind(parts))
