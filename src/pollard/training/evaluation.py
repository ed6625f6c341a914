"""Examples, and how a network does on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pollard.errors import InvalidInput
from pollard.training.placing import in_own_order
from pollard.training.precision import LossFunction, output_and_loss


class Examples(NamedTuple):
    """Inputs `x` `(examples, ...)` and targets `y` `(examples, ...)`."""

    x: Tensor
    y: Tensor


class Evaluation(NamedTuple):
    """Mean loss, and the fraction of examples whose highest output is the target's."""

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module,
    examples: Examples,
    *,
    loss_fn: LossFunction = cross_entropy,
    batch_size: int = 100,
    precision: str = "float32",
) -> Evaluation:
    """Mean loss and accuracy of `model` on `examples`, in evaluation mode, without gradients; the mode is put back.

    precision: that of `TrainingOptions`; a model held in bfloat16 takes its inputs in it under ``bfloat16``.
    """
    was_training = model.training
    model.eval()
    losses, hits, sizes = list[Tensor](), list[Tensor](), list[int]()
    with torch.no_grad():
        for x, y in zip(examples.x.split(batch_size), examples.y.split(batch_size), strict=True):
            output, loss = output_and_loss(model, in_own_order(x), y, loss_fn, precision)
            losses.append(loss)
            hits.append((output.argmax(1) == y).sum())
            sizes.append(len(x))
    model.train(was_training)
    # Read at the end: a device would come to rest at each batch.
    loss_sum = sum(loss * size for loss, size in zip(torch.stack(losses).cpu().tolist(), sizes, strict=True))
    return Evaluation(loss_sum / len(examples.x), int(torch.stack(hits).sum()) / len(examples.x))


def require_pairs(name: str, examples: Examples, device: torch.device) -> None:
    """Raises InvalidInput unless the examples called `name` are some, each with a target, on `device`."""
    if len(examples.x) != len(examples.y) or len(examples.x) == 0:
        raise InvalidInput(
            f"{len(examples.x)} {name} inputs and {len(examples.y)} targets",
            "at least one example, and one target for each",
            "Check how the set was put together.",
        )
    for part in examples:
        if part.device != device:
            raise InvalidInput(
                f"{name} examples on {part.device} for a model on {device}",
                "examples and model on one device",
                f"Move them: Examples(x.to({str(device)!r}), y.to({str(device)!r})).",
            )
