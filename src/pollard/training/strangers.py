"""Optimizers that step the weights of a Sparsifier behind its back: a trainer may have made one of its own."""

from __future__ import annotations

import warnings
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pollard.errors import NothingMoves, SteppedPast
from pollard.training.methods.method import Method
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


class Unasked:
    """Warns of steps that were not asked of a Sparsifier by `method`, and of those past its end: once each.

    Two unasked ones in a row are no accident.
    """

    def __init__(self, method: Method) -> None:
        self.method, self._past, self._strange = method, 0, 0

    def past(self, steps: int) -> None:
        """After `steps` of its own, the optimizer behind it took one."""
        self._past += 1
        self._warn(
            self._past,
            steps,
            f"the optimizer is stepped past the Sparsifier: {self.method.name} waits, and no topology moves. "
            "Call step() of what the call returned, or hand that to the library that steps.",
        )

    def by(self, other: Optimizer, steps: int) -> None:
        """After `steps` of its own, `other` took one."""
        self._strange += 1
        self._warn(
            self._strange,
            steps,
            f"another optimizer, {type(other).__name__}, steps the layers whose topology waits for {self.method.name}. "
            "Hand the Sparsifier to whoever made it, as in Trainer(optimizers=(sparse, scheduler)), or leave the method out.",
        )

    def _warn(self, count: int, steps: int, message: str) -> None:
        if count == 2 and self.method.next_due(steps) is not None:
            warnings.warn(message, SteppedPast, stacklevel=5)

    def taken(self, step: int) -> None:
        """It took its own, this one."""
        self._past = 0 if self._past < 2 else self._past
        self._strange = 0 if self._strange < 2 else self._strange
        if 0 < self.method.steps == step - 1 and self.method.end > 0:
            message = (
                f"step {step} is past the {self.method.steps} that {self.method.name} was planned for: the topology stays as "
                "it is now. Pass the number of all steps, epochs * len(loader), as steps=."
            )
            warnings.warn(message, NothingMoves, stacklevel=4)


__all__ = ["Unasked", "watch"]
