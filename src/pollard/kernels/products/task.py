"""What is asked of a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["forward", "input_grad", "value_grad"]
# Takes the tensors of a product: x or the gradient, then values or x, and of a forward product a bias where there is one.
Call = Callable[..., Tensor]
HALVES = (torch.bfloat16, torch.float16)


class Task(NamedTuple):
    """A kind of product, the dtype of the values, or of their gradient, which activation follows, and whether rows of the result
    are contiguous, where it has any, and not its features.
    """

    kind: Kind
    values: torch.dtype
    activation: str | None = None
    rows: bool = False


__all__ = ["HALVES", "Call", "Kind", "Task"]
