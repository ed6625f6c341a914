"""What a symbolic trace by torch.fx sees of a layer of ours: one call of it, as of a layer of torch's own.

What is traced then keeps the layer, and with it the topology that it has whenever it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn


def tracer_of(given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The tracer, where one of the arguments of a call is a symbol; None otherwise."""
    for each in (*given, *named.values()):
        if isinstance(each, fx.Proxy):
            return each.tracer
    return None


def called(module: nn.Module, tracer: fx.Tracer, given: Sequence[Any], named: Mapping[str, Any]) -> fx.Proxy:
    """The symbol for what `module`, which is within what is traced, makes of its arguments."""
    return tracer.create_proxy("call_module", tracer.path_of_module(module), tuple(given), dict(named))


__all__ = ["called", "tracer_of"]
