"""Memory that kernels use for the length of a call and keep for the next: fresh pages cost more than filling them does."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from pollard.heap import hand_back
from pollard.kernels.products import results

_own = threading.local()


def workspace(purpose: str, size: int) -> Tensor:
    """At least `size` fp32 numbers of any content, this thread's own, until its next call for `purpose`.

    Small ones are the same memory at each call; large ones lie where large results do, once they are let go.
    """
    if 4 * size >= results.LEAST and (large := results.outside(size)) is not None:
        return large
    buffers: dict[str, Tensor] = _own.__dict__
    found = buffers.get(purpose)
    if found is None or found.numel() < size:
        buffers[purpose] = found = torch.empty(size, dtype=torch.float32, device="cpu")
    return found


def held_bytes() -> int:
    """Bytes that this thread keeps."""
    return sum(buffer.nbytes for buffer in _own.__dict__.values())


def release() -> None:
    """Give the memory of this thread back."""
    _own.__dict__.clear()


def trim() -> None:
    """Hand what is freed, and what results were kept for, back to the system."""
    results.release()
    hand_back()
