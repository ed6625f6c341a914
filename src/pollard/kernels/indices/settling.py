"""Random numbers made distinct and ascending, without sorting where a bit for each number that there could be is little."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from pollard.formats import sampling
from pollard.formats.sampling import Integers
from pollard.kernels.code.emit.settle import LINE, WORD
from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target

# Numbers that could be, for each that there is: the bits then take no more than twice the memory of the numbers.
SPARSE = 64


def distinct(numbers: Integers, total: int) -> Integers:
    """The distinct ones of `numbers`, all in `range(total)`, ascending; `numbers` is spoiled.

    >>> distinct(np.array([5, 0, 5, 3], np.int32), 6).tolist()
    [0, 3, 5]
    """
    made = None
    if numbers.dtype == np.int32 and numbers.flags.c_contiguous and total <= SPARSE * len(numbers):
        made = attempt(partial(_ticked, numbers, total))
    return sampling.distinct(numbers, total) if made is None else made


def _ticked(numbers: Integers, total: int, target: Target) -> Integers:
    threads, words = torch.get_num_threads(), -(-total // WORD)
    bits = torch.zeros(words + threads * LINE, dtype=torch.int64, device="cpu")
    bounds = equal_runs(words, threads)
    starts = torch.zeros(threads + 1, dtype=torch.int32, device="cpu")
    Launch(
        KernelSpec("tick", target.isa), threads, threads, numbers=torch.from_numpy(numbers), bits=bits, counts=starts[1:],
        bounds=bounds, PASSES=1, COUNT=len(numbers), WORDS=words,
    )()  # fmt: skip
    torch.cumsum(starts, 0, dtype=torch.int32, out=starts)
    found = torch.empty(int(starts[-1]), dtype=torch.int32, device="cpu")
    Launch(
        KernelSpec("list", target.isa), threads, threads, bits=bits, starts=starts, found=found, bounds=bounds, PASSES=1,
    )()  # fmt: skip
    made: Integers = found.numpy()
    return made
