"""Optimizers that step the weights of a Sparsifier behind its back: a trainer may have made one of its own."""

from __future__ import annotations

import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pollard.training.wrapping import within

if TYPE_CHECKING:
    from pollard.training.sparsifier import Sparsifier

# With each Sparsifier, the optimizers that stand before or behind it.
_watched: weakref.WeakKeyDictionary[Sparsifier, weakref.WeakSet[Optimizer]] = weakref.WeakKeyDictionary()


def watch(sparsifier: Sparsifier) -> None:
    """Have `sparsifier.stepped_by` called with each optimizer that steps its weights and is not wrapped around it, nor it around that."""
    _watched[sparsifier] = weakref.WeakSet(within(sparsifier))
    _listen()


@cache
def _listen() -> None:
    # Torch tells of the steps of all optimizers at one place for the whole process. It cannot be left from within a step.
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    for sparsifier, kin in list(_watched.items()):
        if optimizer in kin or not _steps_weights(optimizer, sparsifier):
            continue
        if any(each in kin for each in within(optimizer)):
            kin.add(optimizer)
        else:
            sparsifier.stepped_by(optimizer)


def _steps_weights(optimizer: Optimizer, sparsifier: Sparsifier) -> bool:
    own = {id(weight.parameter) for weight in sparsifier.weights.values()}
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])


__all__ = ["watch"]
