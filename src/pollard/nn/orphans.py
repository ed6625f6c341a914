"""Parameters whose layer was replaced: an optimizer that goes on stepping them trains nothing, and is told so."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pollard.errors import SteppedPast

_orphans: dict[int, weakref.ref[nn.Parameter]] = {}
_told: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def orphan(parameters: Iterable[nn.Parameter]) -> None:
    """Warn SteppedPast, once an optimizer, where one steps a parameter of `parameters` that no gradient reaches any more."""
    for parameter in parameters:
        key = id(parameter)
        _orphans[key] = weakref.ref(parameter, partial(_forget, key))
    _listen()


@cache
def _listen() -> None:
    # Torch tells of the steps of all optimizers at one place for the whole process. It cannot be left from within a step.
    register_optimizer_step_post_hook(_stepped)


def _forget(key: int, _: object) -> None:
    _orphans.pop(key, None)


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    if not _orphans or optimizer in _told:
        return
    held = [parameter for group in optimizer.param_groups for parameter in group["params"] if id(parameter) in _orphans]
    # Who still trains the old layer by itself has gradients.
    lost = [parameter for parameter in held if parameter.grad is None]
    if lost:
        _told.add(optimizer)
        message = (
            f"{type(optimizer).__name__} steps {len(lost)} parameters of layers that were replaced since it was made, and not "
            "those of the layers in their place. Make the optimizer after pollard.sparsify_(model, plan), or let "
            "pollard.static(model, optimizer, ...) make the layers sparse: it has the optimizer follow."
        )
        warnings.warn(message, SteppedPast, stacklevel=2)


__all__ = ["orphan"]
