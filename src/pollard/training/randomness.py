"""Random streams that are made again from (seed, purpose), so that resuming needs no saved generator."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose of a run: each (seed, purpose) has its own, made again whenever it is needed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A fresh generator at the start of the stream of (seed, purpose).

    >>> first, second = generator(0, "weights"), generator(0, "weights")
    >>> torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))
    True
    """
    return torch.Generator().manual_seed(stream(seed, purpose))
