"""The numbers that a network is trained in: its own, bfloat16 around float32 weights, or bfloat16 throughout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]


def bring_(model: nn.Module, precision: str) -> None:
    """Bring `model` in place to what it holds its weights in while it trains in `precision`."""
    if precision == "bfloat16":
        model.to(torch.bfloat16)


def output_and_loss(
    model: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction, precision: str
) -> tuple[Tensor, Tensor]:
    """The outputs of `model` for `x` in `precision`, and their loss, which is of float32 outputs wherever they are halved.

    >>> model, x, y = nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
    >>> for precision in ("float32", "autocast"):
    ...     output, loss = output_and_loss(model, x, y, nn.functional.cross_entropy, precision)
    ...     print(output.dtype, loss.dtype)
    torch.float32 torch.float32
    torch.bfloat16 torch.float32
    """
    if precision == "bfloat16" and x.is_floating_point():
        x = x.to(torch.bfloat16)
    # Where there is nothing to cast, autocast that callers have set up is theirs.
    casting = torch.autocast(x.device.type, torch.bfloat16) if precision == "autocast" else nullcontext()
    with casting:
        output = model(x)
        halved = precision != "float32" and output.is_floating_point()
        return output, loss_fn(output.float() if halved else output, y)
