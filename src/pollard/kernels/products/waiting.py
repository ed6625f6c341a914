"""What goes on on a GPU behind the host's back: work that is still queued, and graphs that are captured of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from pollard.errors import InvalidInput


def wait_for_stream(let_go: Any) -> None:
    """Have the memory of tensors within `let_go` wait for what the current stream does with it, before it becomes anything else.

    Torch would hand it out again on the stream that it was made on, which may be another.
    """
    for tensor in tensors_within(let_go):
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def is_captured() -> bool:
    """Whether what this thread has a GPU do now is captured in a CUDA graph."""
    # Torch without CUDA does not answer.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def refuse_capture() -> None:
    """Raises InvalidInput where a CUDA graph is captured of a layer that has not run before."""
    if is_captured():
        raise InvalidInput(
            "a CUDA graph captured of a sparse layer that has not run since its topology was made",
            "a layer whose index arrays are on the device already",
            "Run the model forwards and backwards before torch.cuda.graph(...), as torch has it, and capture it anew whenever "
            "its topology has moved.",
        )


def tensors_within(held: Any) -> Iterator[Tensor]:
    """The tensors that `held` is, or that its parts are."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, tuple | list):
        for each in held:
            yield from tensors_within(each)
    elif is_dataclass(held):
        for field in fields(held):
            yield from tensors_within(getattr(held, field.name))


__all__ = ["is_captured", "refuse_capture", "tensors_within", "wait_for_stream"]
