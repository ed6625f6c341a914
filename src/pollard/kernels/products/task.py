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
    """A kind of product, whether a ReLU follows, and the dtype of the values, or of their gradient."""

    kind: Kind
    relu: bool
    values: torch.dtype


__all__ = ["HALVES", "Call", "Kind", "Task"]
