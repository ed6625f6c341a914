"""Which activation a module is, whoever wrote it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu", torch.relu: "relu", "relu": "relu", functional.gelu: "gelu", functional.silu: "silu"
}  # fmt: skip


def activation_of(module: nn.Module) -> str | None:
    """The activation, of those that kernels have, that `module` computes and nothing else; None for any other module.

    >>> activation_of(nn.GELU(approximate="tanh")), activation_of(nn.Tanh()), activation_of(nn.Linear(1, 1))
    ('gelu_tanh', None, None)
    """
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.SiLU:
        return "silu"
    if type(module) is nn.GELU:
        return _gelu(module.approximate)
    return None if type(module).__module__.startswith("torch.") or not _is_bare(module) else _traced(module)


def _is_bare(module: nn.Module) -> bool:
    """Whether it holds nothing, and is called with one tensor."""
    forward = type(module).forward
    if any(True for _ in module.children()) or any(True for _ in module.named_parameters()) or module._buffers:  # noqa: SLF001 - those that are no part of the state too
        return False
    return inspect.isfunction(forward) and len(inspect.signature(forward).parameters) == 2


def _traced(module: nn.Module) -> str | None:
    """As its own code calls it: `transformers` has classes of its own around torch's functions."""
    try:
        # A copy, so that nothing that it writes down is written in the module.
        nodes = list(fx.Tracer().trace(copy.deepcopy(module)).nodes)
    except Exception:  # noqa: BLE001 - whatever a module of the user's does with a symbol
        return None
    if [node.op for node in (nodes[0], nodes[-1])] != ["placeholder", "output"] or len(nodes) != 3:
        return None
    called = nodes[1]
    name = _FUNCTIONS.get(called.target) if called.args == (nodes[0],) and nodes[2].args == (called,) else None
    options = {key: value for key, value in called.kwargs.items() if key != "inplace"}
    if name == "gelu":
        approximate = options.pop("approximate", "none")
        return _gelu(approximate) if not options else None
    return name if not options else None


def _gelu(approximate: Any) -> str | None:
    return {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate)


__all__ = ["activation_of"]
