"""Rounding to bfloat16 at random, by a stream of bits that is a function of a seed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.kernels.code.emit.numbers import QUIET
from pollard.kernels.code.emit.round import BLOCK, HALF, LANES, PART, WORDS
from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.launch import Launch
from pollard.kernels.code.philox import key, slot, words
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target

SOME = 1 << 17  # numbers at a time in plain torch: what is gone over again is in L2


@torch.no_grad()
def round_stochastically(x: Tensor, seed: int) -> Tensor:
    """Float32 `x` in bfloat16, each number one of its two neighbours there, the nearer the likelier; its mean is `x`.

    What bfloat16 holds stays as it is, infinite numbers too, and NaN stays NaN. The bits are those of Philox4x32-10 with the key
    `seed`, of 64 bits, and the place of a number, the same on every machine and any number of threads. Raises InvalidInput for
    another dtype.

    >>> x = torch.full((10000,), 1 + 2**-9)  # a quarter of the way from 1 to the next
    >>> found = round_stochastically(x, seed=0)
    >>> found.unique().tolist(), round((found > 1).float().mean().item(), 2)
    ([1.0, 1.0078125], 0.25)
    """
    if x.dtype is not torch.float32:
        raise InvalidInput(f"numbers of {x.dtype} to round", "torch.float32", "Convert them first.")
    exact = x.contiguous().view(-1)
    rounded = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    if exact.is_cpu and len(exact) and attempt(partial(_by_kernel, exact, rounded, seed)):
        return rounded
    for first in range(0, len(exact), SOME):
        part = slice(first, first + SOME)
        _slowly(exact[part], rounded.view(-1)[part], first, seed)
    return rounded


def _by_kernel(exact: Tensor, rounded: Tensor, seed: int, target: Target) -> bool:
    Launch(
        KernelSpec("round", target.isa), -(-len(exact) // PART), torch.get_num_threads(),
        exact=exact, rounded=rounded, PASSES=1, COUNT=len(exact), SEED=slot(seed),
    )()  # fmt: skip
    return True


def _slowly(exact: Tensor, rounded: Tensor, first: int, seed: int) -> None:
    """Write to `rounded` what the numbers from the `first` on, a whole number of blocks, are rounded to: the specification."""
    blocks = -(-len(exact) // BLOCK)
    start = first // BLOCK * LANES
    counters = torch.arange(start, start + blocks * LANES, dtype=torch.int64, device=exact.device)
    made = torch.stack(words([counters, 0, 0, 0], key(seed)))
    halves = torch.stack([made & (1 << HALF) - 1, made >> HALF], 1).view(2 * WORDS, blocks, LANES)
    bits = halves.transpose(0, 1).reshape(-1)[: len(exact)].int()
    number = exact.view(torch.int32)
    moved = torch.where(exact.isnan(), number | QUIET.constant, number + bits)
    rounded.view(torch.int16).copy_(moved.bitwise_right_shift_(HALF))


__all__ = ["round_stochastically"]
