"""Which module of a model reads what another one gives: seen by tracing symbolically, on no data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import fx, nn

from pollard.composites import Composite
from pollard.copies import copied
from pollard.nn.activations import activation_of
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module: the module that gave its one input, and who reads its result; None for anything but a module."""

    source: nn.Module | None
    readers: tuple[nn.Module | None, ...]


@dataclass(slots=True)
class Flow:
    """What is read from where, in a model or in those of its modules that can be traced.

    calls: of each module that is called, torch's own, sparse ones and activations, not those around them. read: modules of which a tensor is
    read past them. untraced: why something in the model cannot be traced, if so. parts: how many of its modules were, apart.
    """

    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)
    read: set[nn.Module] = field(default_factory=set)
    untraced: str | None = None
    parts: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> Flow:
        """The flow through `model`, called with what has no default; raises InvalidInput where it cannot be copied.

        A copy is traced, so that what a `forward` writes down is not written in `model`.

        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> Flow.of(model).calls[model[0]][0].readers
        (ReLU(),)
        """
        hooks = [vars(module)[name] for module in model.modules() for name in _HOOKS]
        shared = (*model.parameters(), *model.buffers(), *hooks)
        tracing = _Tracing(copied(model, "to see who reads what in it", shared=shared))
        pieces = tracing.pieces()
        flow = cls(untraced=next(iter(tracing.failures.values()), None), parts=len(pieces))
        for piece in pieces:
            flow._take(model, piece)
        return flow

    def reader(self, module: nn.Module) -> nn.Module | None:
        """The module that alone reads what `module` gives, and reads nothing else, both called once; identities are passed over."""
        calls = self.calls.get(module, [])
        if len(calls) != 1 or len(calls[0].readers) != 1:
            return None
        found = calls[0].readers[0]
        if found is None or [call.source for call in self.calls[found]] != [module]:
            return None
        return self.reader(found) if isinstance(found, nn.Identity) and not is_hooked(found) else found

    def _take(self, model: nn.Module, piece: _Piece) -> None:
        def module(node: Any) -> nn.Module | None:
            called = isinstance(node, fx.Node) and node.op == "call_module"
            return model.get_submodule(_joined(piece.path, str(node.target))) if called else None

        for node in piece.graph.nodes:
            given = [*node.args, *node.kwargs.values()]
            made = module(node)
            if made is not None:
                source = module(given[0]) if len(given) == 1 else None
                self.calls.setdefault(made, []).append(Call(source, tuple(map(module, node.users))))
            elif node.op == "get_attr":
                path = _joined(piece.path, str(node.target))
                self.read.add(model.get_submodule(path.rpartition(".")[0]))


def is_hooked(module: nn.Module) -> bool:
    """Whether a hook on the calls of `module` is its own."""
    return any(vars(module)[name] for name in _HOOKS)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A module that was traced, at `path`, and the modules that were entered on the way."""

    path: str
    root: nn.Module
    graph: fx.Graph
    entered: set[nn.Module]


class _Tracing:
    """Traces a model as a whole where that is possible, and otherwise its largest modules that can be.

    What has hooks is never entered from without: they see what it is given, and may give something else.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.closed = {module for module in model.modules() if is_hooked(module)}
        self.failures: dict[nn.Module, str] = {}

    def pieces(self) -> list[_Piece]:
        hooked = [(name, module) for name, module in self.model.named_modules() if module in self.closed]
        found = [*self._within("", self.model)]
        for name, module in hooked:
            found += self._within(name, module)
        entered = set().union(*(piece.entered for piece in found))
        roots = {piece.root: piece for piece in reversed(found) if piece.root not in entered}
        return list(roots.values())

    def _within(self, path: str, module: nn.Module) -> Iterator[_Piece]:
        """What can be traced of `module`; modules within it that cannot be are closed from then on."""
        if _is_leaf(module):
            return
        whole = self._attempt(path, module)
        if whole is None:
            children = [(_joined(path, name), child) for name, child in module.named_children()]
            inner = list(chain.from_iterable(self._within(*child) for child in children))
            whole = self._attempt(path, module)
            yield from inner
        if whole is None:
            self.closed.add(module)
        else:
            yield whole

    def _attempt(self, path: str, module: nn.Module) -> _Piece | None:
        if "forward" in vars(module):
            self.failures.setdefault(module, "its forward is set on the instance")
            return None
        tracer = _Tracer(self.closed - {module})
        try:
            with torch.random.fork_rng(devices=[]):
                graph = tracer.trace(module, concrete_args=_defaults(module))
        except Exception as error:  # noqa: BLE001 - whatever a module of the user's does with a symbol
            self.failures.setdefault(module, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return None
        return _Piece(path, module, graph, tracer.entered)


class _Tracer(fx.Tracer):
    """Torch's own modules, sparse ones, activations and `closed` ones are called, all others entered."""

    # So that whoever reads a running mean past its norm is seen.
    proxy_buffer_attributes = True

    def __init__(self, closed: set[nn.Module]) -> None:
        super().__init__()
        self.closed = closed
        self.entered: set[nn.Module] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is called as it is."""
        del module_qualified_name
        leaf = m in self.closed or _is_leaf(m)
        if not leaf:
            self.entered.add(m)
        return leaf


def _is_leaf(module: nn.Module) -> bool:
    kind = type(module)
    own = kind.__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(
        module, nn.Sequential | nn.ModuleList | nn.ModuleDict
    )
    known = isinstance(module, SparseLinear | MaskedLinear | Composite | nn.Identity)
    return own or known or activation_of(module) is not None


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Of the arguments of its `forward` that have any."""
    forward: Callable[..., Any] = type(module).forward
    parameters = inspect.signature(forward).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}".strip(".")


__all__ = ["Call", "Flow", "is_hooked"]
