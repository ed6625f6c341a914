"""Copies of a user's model, or an error that says what to do where it has none; and of what users write on parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

from torch import nn

from pollard.errors import InvalidInput

Model = TypeVar("Model", bound=nn.Module)
KEEP_OUT = "Keep what cannot be copied out of the model."


def copied(model: Model, purpose: str, *, shared: Iterable[object] = (), fix: str = KEEP_OUT) -> Model:
    """A copy of `model` for a `purpose`, with the same `shared` objects; raises InvalidInput where it cannot be copied.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> copied(model, "to be taken apart", shared=model.parameters())[0].weight is model[0].weight
    True
    """
    try:
        return copy.deepcopy(model, {id(each): each for each in shared})
    except Exception as error:  # whatever a module of the user's holds
        raise InvalidInput(
            f"a model that cannot be copied, {purpose}: {error}", "a model that copy.deepcopy takes", fix
        ) from error


def carry_marks(old: nn.Parameter, new: nn.Parameter) -> None:
    """Gives the parameter `new` what was written on `old`, as `weight.no_decay = True`."""
    for key, value in vars(old).items():
        setattr(new, key, value)


__all__ = ["carry_marks", "copied"]
