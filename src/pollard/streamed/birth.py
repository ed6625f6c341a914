"""Modules that are born without memory for their weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from pollard.streamed.drawn import Drawn
from pollard.streamed.tensor import StreamedTensor
from pollard.streams import Stream

_SERVED = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}
_CONSTRUCTORS = {nn.Linear.__init__.__code__, _ConvNd.__init__.__code__}
_DEPTH = 12  # frames between an operator of torch and the constructor that called it, at most
_SEEDS = 2**63 - 1


@contextmanager
def never_dense(seed: int | None = None) -> Iterator[None]:
    """Within the block, weights of linear layers and convolutions are made without memory: as `StreamedTensor`.

    ::

        with pollard.never_dense(seed=0):
            model = MyModel()
        plan = pollard.prune(model, "snip", density=0.001, batch=batch)
        pollard.sparsify_(model, plan)

    Each weight is a function of the seed, how many such weights were made before it in the block, its row and its column, and of
    what initialisers do to it, at once or later. Scoring makes rows of it when it needs them; `sparsify_` gives what is kept its
    numbers. Everything else is made as ever: biases, norms, embeddings, attention and recurrent modules of torch's own, subclasses of
    `nn.Linear`, convolutions with groups.

    seed: of these weights, and of torch's own generator within the block, whose state comes back after it; None draws a seed
    from torch's generator, and leaves that otherwise alone. `pollard.densify_(model)` gives every weight memory, with the same numbers.

    >>> with never_dense(seed=0):
    ...     model = nn.Sequential(nn.Linear(100_000, 100_000), nn.ReLU(), nn.Linear(100_000, 10))
    >>> type(model[0].weight).__name__, model[0].weight.shape
    ('StreamedTensor', torch.Size([100000, 100000]))
    """
    with ExitStack() as stack:
        if seed is None:
            seed = int(torch.randint(_SEEDS, (), dtype=torch.int64, device="cpu"))
        else:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.random.default_generator.manual_seed(seed)
        stack.enter_context(_Birth(seed))
        yield


def streamed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` that have a weight without memory, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(isinstance(parameter, StreamedTensor) for parameter in module.parameters(recurse=False))
    }


def give_memory_(module: nn.Module) -> None:
    """Replaces the weights of `module` itself that have no memory by ordinary ones of the same numbers."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if isinstance(parameter, StreamedTensor):
            setattr(module, name, nn.Parameter(parameter.to_dense(), parameter.requires_grad))


class _Birth(TorchDispatchMode):
    """Gives weights no memory when they are made."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.seed, self.made = seed, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As ever, but for the memory of a weight."""
        del types
        kwargs = kwargs or {}
        here = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if func is torch.ops.aten.empty.memory_format and here and len(args[0]) > 1 and _is_weight():
            shape = tuple(args[0])
            stream = Stream(self.seed, self.made)
            self.made += 1
            matrix = shape[0], torch.Size(shape[1:]).numel()
            return StreamedTensor(Drawn(stream, matrix, kwargs.get("dtype") or torch.get_default_dtype()), shape)
        return func(*args, **kwargs)


def _is_weight() -> bool:
    """Whether what is made now is the weight of a layer that can be pruned: whose constructor is running."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - the constructors of torch ask nobody else
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code in _CONSTRUCTORS:
            module = frame.f_locals["self"]
            return type(module) in _SERVED and getattr(module, "groups", 1) == 1
        frame = frame.f_back
    return False


__all__ = ["give_memory_", "never_dense", "streamed_layers"]
