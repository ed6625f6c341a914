"""Several processes that train one network together: what they share, and the checks that they agree.

Every function here that exchanges something is called by all processes, in the same order: it waits for the others.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pollard.errors import InvalidInput, PollardError

Value = TypeVar("Value")

# A process that has died is noticed at once, by its closed connection. A living one may train a dense twin for hours.
PATIENCE = timedelta(days=7)


class Disagreement(PollardError, RuntimeError):
    """Processes that train one network have come to hold different topologies."""


@contextmanager
def joined() -> Iterator[None]:
    """Within the block, this process trains together with those that a launcher such as torchrun started beside it.

    Nothing happens where no launcher did, or where they are together already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def count() -> int:
    """Processes that train together; 1 where torch.distributed is not in use."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return distributed.get_rank() if count() > 1 else 0


def mean(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over all processes, in its place if it is contiguous; every process gets the same bits."""
    if count() > 1:
        tensor = tensor.contiguous()
        distributed.all_reduce(tensor)
        tensor /= count()
    return tensor


def gathered(value: Value) -> list[Value]:
    """The `value` of each process, by rank; something small.

    >>> gathered("here")
    ['here']
    """
    if count() == 1:
        return [value]
    everyone: list[Value] = [value] * count()
    distributed.all_gather_object(everyone, value)
    return everyone


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


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over all processes: as many numbers travel as weights are kept.

    In place of DistributedDataParallel, whose buckets cannot follow a layer that keeps more or fewer weights than before.
    One collective for all gradients of a dtype. A gradient that some processes lack counts as zero there; one that all
    lack stays away.
    """
    if count() == 1:
        return
    for trained in _by_dtype(parameter for parameter in model.parameters() if parameter.requires_grad):
        # Who has a gradient at all travels along: an optimizer leaves alone what has none, momentum and decay included.
        there = trained[0].new_tensor([each.grad is not None for each in trained])
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
        flat = mean(torch.cat([*(each.reshape(-1) for each in parts), there]))
        means = flat.split([*(each.numel() for each in trained), len(trained)])
        for parameter, average, found in zip(trained, means, means[-1].tolist(), strict=False):
            if found and parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            if found and parameter.grad is not None:
                parameter.grad.copy_(average.view_as(parameter))


@torch.no_grad()
def start_alike(model: nn.Module) -> None:
    """Give every process the parameters and buffers that the first one has; index arrays must be the same already."""
    if count() == 1:
        return
    for held in _by_dtype(each for each in (*model.parameters(), *model.buffers()) if each.is_floating_point()):
        flat = torch.cat([each.reshape(-1) for each in held])
        distributed.broadcast(flat, 0)
        for tensor, told in zip(held, flat.split([each.numel() for each in held]), strict=True):
            tensor.copy_(told.view_as(tensor))


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Replace running statistics by their means over all processes, of which each has seen other examples."""
    if count() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(mean(buffer.clone()))


def fail_together(error: PollardError | None) -> None:
    """Raises the `error` of this process or of another, on all of them: none goes on to wait for one that has failed."""
    if count() == 1 and error is not None:
        raise error
    for other, found in enumerate(gathered(error)):
        if found is not None:
            raise type(found)(f"on rank {other}: {found.got}", found.expected, found.fix)


@contextmanager
def failing_together() -> Iterator[None]:
    """All processes leave the block together, or all raise the Pollard error that one of them has met in it."""
    error = None
    try:
        yield
    except PollardError as met:
        if count() == 1:
            raise
        error = met
    fail_together(error)


def require_agreement(fingerprints: Mapping[str, str], step: int) -> None:
    """Raises Disagreement, on every process, unless all hold the same fingerprint of each layer after `step`."""
    everyone = gathered(dict(fingerprints))
    for layer in dict.fromkeys(layer for held in everyone for layer in held):
        for other, held in enumerate(everyone):
            if held.get(layer) != everyone[0].get(layer):
                raise Disagreement(
                    f"another topology of layer {layer!r} on rank {other} than on rank 0 after step {step}",
                    "the same topology everywhere",
                    "Start all ranks from the same weights, seed, scored batch and checkpoint, average gradients before "
                    "each step, and use the same Pollard and torch on all machines.",
                )


def bare(model: nn.Module) -> nn.Module:
    """What DistributedDataParallel is wrapped around, if `model` is such a wrapper; else `model`."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def is_wrapped(model: nn.Module) -> bool:
    """Whether some DistributedDataParallel averages gradients of `model`.

    It leaves no trace on what it wraps, so all that are alive are looked at: some hundredths of a second.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    own = {id(parameter) for parameter in model.parameters()}
    wrappers = [each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel)]
    return any(id(parameter) in own for wrapper in wrappers for parameter in wrapper.parameters())


def refuse_shards(parameters: Mapping[str, Tensor], expected: str, fix: str) -> None:
    """Raises InvalidInput for the first of `parameters`, by layer name, of which this process holds but a shard."""
    sharding = sys.modules.get("torch.distributed.tensor")  # where nobody has loaded it, nobody has sharded anything
    for name, parameter in parameters.items():
        if sharding is not None and isinstance(parameter, sharding.DTensor):
            raise InvalidInput(f"a shard of layer {name!r}, as fully_shard leaves on each process", expected, fix)


def _by_dtype(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    held = list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in held):
        yield [tensor for tensor in held if tensor.dtype == dtype]
