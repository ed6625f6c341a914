"""Several processes that train one network together: what they share, and the check that they agree."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn

from pollard.errors import PollardError


class Disagreement(PollardError, RuntimeError):
    """Processes that train one network have come to hold different topologies."""


def count() -> int:
    """Processes that train together; 1 where torch.distributed is not in use."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return distributed.get_rank() if count() > 1 else 0


def mean(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over all processes, in place; every process gets the same bits."""
    if count() > 1:
        tensor = tensor.contiguous()
        distributed.all_reduce(tensor)
        tensor /= count()
    return tensor


def part_of(batch: Tensor) -> tuple[Tensor, float]:
    """The part of `batch` `(examples,)` that is this process's, and what its mean counts for in the mean over all.

    The mean over processes of part means times shares is the mean over the batch, whatever its size. A process that gets
    none takes the first, for nothing, so that all take part in every exchange.

    >>> part_of(torch.arange(3))
    (tensor([0, 1, 2]), 1.0)
    """
    if count() == 1:
        return batch, 1.0
    own = batch[rank() :: count()]
    return (own, len(own) * count() / len(batch)) if len(own) else (batch[:1], 0.0)


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over all processes: as many numbers travel as weights are kept.

    In place of DistributedDataParallel, whose buckets cannot follow a layer that keeps more or fewer weights than before.
    One collective for all gradients of a dtype. A parameter without a gradient counts as zero gradient.
    """
    if count() == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        parts = [parameter for parameter in trained if parameter.dtype == dtype]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parts]
        flat = mean(torch.cat([each.reshape(-1) for each in gradients]))
        for parameter, gradient in zip(parts, flat.split([each.numel() for each in parts]), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()


def require_agreement(fingerprints: Mapping[str, str], step: int) -> None:
    """Raises Disagreement, on every process, unless all hold the same fingerprint of each layer after `step`."""
    if count() == 1:
        return
    everyone: list[dict[str, str]] = [{} for _ in range(count())]
    distributed.all_gather_object(everyone, dict(fingerprints))
    for layer, expected in everyone[0].items():
        for other, held in enumerate(everyone):
            if held.get(layer) != expected:
                raise Disagreement(
                    f"another topology of layer {layer!r} on rank {other} than on rank 0 after step {step}",
                    "the same topology everywhere",
                    "Start all ranks from the same weights, seed and checkpoint, average gradients before each step, "
                    "and use the same Pollard and torch on all machines.",
                )
