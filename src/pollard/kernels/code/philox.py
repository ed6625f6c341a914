"""Philox4x32-10 in plain torch, on any device: the specification of what kernels make."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pollard.kernels.code.emit.philox import LOW, MULTIPLIERS, ROUNDS, WEYL, WORD

Word = Any  # an int64 tensor, or an integer


def key(seed: int) -> tuple[int, int]:
    """The lower and the upper half of the 64 bits of `seed`, which `words` takes."""
    return seed & LOW, seed >> WORD & LOW


def slot(seed: int) -> int:
    """The same 64 bits as a kernel is told them: an integer with a sign.

    >>> slot(3), slot((1 << 64) - 1)
    (3, -1)
    """
    (signed,) = struct.unpack("q", struct.pack("II", *key(seed)))
    return int(signed)


def words(counter: Sequence[Word], key: tuple[int, int]) -> list[Tensor]:
    """Four random words of 32 bits, int64 tensors of the shape that the four words of `counter` broadcast to.

    The first and the third word of the counter, of which one at least is a tensor, are multiplied, the halves of the products
    change places and are mixed with the others and the `key`, ten times (Salmon et al., SC 2011).

    >>> import torch
    >>> [f"{int(word):08x}" for word in words([torch.tensor(0)] * 4, (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    first, second, third, fourth = counter
    for turn in range(ROUNDS):
        # Of a product the lower 64 bits are right, whatever sign they are taken to have.
        products = [word * by for word, by in zip((first, third), MULTIPLIERS, strict=True)]
        low, high = [product & LOW for product in products], [(product >> WORD) & LOW for product in products]
        keys = [(word + turn * step) & LOW for word, step in zip(key, WEYL, strict=True)]
        first, second, third, fourth = high[1] ^ second ^ keys[0], low[1], high[0] ^ fourth ^ keys[1], low[0]
    return [first, second, third, fourth]
