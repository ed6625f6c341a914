"""Random streams that are made again from (seed, purpose), so that resuming needs no saved generator."""

from __future__ import annotations

import hashlib

import torch

from pollard.training import processes


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


def agreed(seed: int | None) -> int:
    """`seed`, or where that is None one drawn from torch's own generator, whose state moves on.

    Each process draws, and all take what the first one drew: each may have seeded torch differently.

    >>> _ = torch.manual_seed(0)
    >>> first, second, _ = agreed(None), agreed(None), torch.manual_seed(0)
    >>> first == second, first == agreed(None), agreed(5)
    (False, True, 5)
    """
    if seed is not None:
        return seed
    return processes.gathered(int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")))[0]
