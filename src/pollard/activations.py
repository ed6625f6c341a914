"""What a product may go through before it is rounded and stored, by name: in torch, which says what each of them is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from pollard.errors import InvalidInput

RELU = "relu"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    RELU: torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
}


def activated(y: Tensor, activation: str | None) -> Tensor:
    """`y` through the activation of that name; None: as it is.

    Raises InvalidInput for a name that is none of ACTIVATIONS.

    >>> activated(torch.tensor([-1.0, 2.0]), "relu")
    tensor([0., 2.])
    """
    require_activation(activation)
    return y if activation is None else ACTIVATIONS[activation](y)


def activated_(y: Tensor, activation: str | None) -> Tensor:
    """`activated`, in the memory of `y` where torch has it so: of ReLU, whose result lies as `y` does."""
    return y.relu_() if activation == RELU else activated(y, activation)


def require_activation(activation: str | None) -> None:
    """Raises InvalidInput for a name that is none of ACTIVATIONS."""
    if activation is not None and activation not in ACTIVATIONS:
        raise InvalidInput(
            f"activation {activation!r}",
            f"None, or one of {', '.join(ACTIVATIONS)}",
            "Put any other module behind the layer.",
        )


def read_off(activation: str | None) -> bool:
    """Whether the derivative is read off the result, so that training keeps nothing else.

    >>> read_off("relu"), read_off("gelu")
    (True, False)
    """
    return activation in (None, RELU)


__all__ = ["ACTIVATIONS", "RELU", "activated", "activated_", "read_off", "require_activation"]
