"""Which grains come, and what they start from: rules from a `Change` and what stays to positions, ascending.

A grain that an update has just dropped may come back: then it has not moved, and keeps its value and its state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pollard.kernels.choosing import choose
from pollard.kernels.rewire import sample_grown
from pollard.pruning.masks import top_mask
from pollard.pruning.running_top import EXCLUDED, RunningTop
from pollard.training.methods.change import Change

# One row in so many says what the best of all may score, looked at in so many places at least.
SHARE, PLACES = 32, 8

Grow = Callable[[Change, Tensor, int], Tensor]
Start = Callable[[int, torch.Generator], "float | Tensor"]


def at_random(change: Change, stays: Tensor, count: int) -> Tensor:
    """`count` of all that does not stay, each choice equally likely."""
    return sample_grown(change.weight.topology, count, change.generator, stays=stays)


def by_gradient(change: Change, stays: Tensor, count: int) -> Tensor:
    """The largest `|dL/dw|` of all that does not stay, exactly, streamed by row blocks; ties by position.

    Memory O(count + block): the dense gradient never exists. A grain's score is the sum over its weights.
    """
    bound = _likely_bound(change, stays, count)
    found = _above(change, stays, count, bound)
    # Where these rows misled, everything is a candidate.
    return found if len(found) == count or bound == EXCLUDED else _above(change, stays, count, EXCLUDED)


def _above(change: Change, stays: Tensor, count: int, bound: float) -> Tensor:
    """Of what does not stay and scores above `bound`, the `count` best, or all where there are fewer."""
    passes, topology = change.weight.passes, change.weight.topology
    running = RunningTop(count, bound)
    for group, block in passes.blocks(topology):
        running.take(*choose(topology, stays, group, block, running.least))
    return running.positions()


def _likely_bound(change: Change, stays: Tensor, count: int) -> float:
    """What half as many again as `count` score above, going by some rows; EXCLUDED, which all do, where that is no help."""
    passes, topology = change.weight.passes, change.weight.topology
    looked_at, block = topology.groups // SHARE, passes.block(topology)
    rows = min(looked_at // PLACES, block)
    if passes.whole or not rows or not count:
        return EXCLUDED
    # Many rows, since each has a scale of its own, but no more of their scores than there are in a block.
    places, every = looked_at // rows, -(-looked_at // block)
    firsts = [topology.groups * place // places for place in range(places)]
    sample = torch.cat(
        [
            choose(topology, stays, first, passes.scores(topology, first, first + rows), EXCLUDED)[1][::every].clone()
            for first in firsts
        ]
    )
    rank = round(1.5 * count * len(sample) / (change.total - int(np.count_nonzero(stays.numpy()))))
    bound = float(sample[top_mask(sample, rank)].min()) if 0 < rank < len(sample) else 0.0
    return bound if bound > 0.0 else EXCLUDED


def from_zero(count: int, generator: torch.Generator) -> float:
    """Grown weights start at zero."""
    del count, generator
    return 0.0


def from_normal(deviation: float) -> Start:
    """Grown weights start from N(0, deviation^2)."""
    return partial(_normal, deviation)


def _normal(deviation: float, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator, dtype=torch.float32, device="cpu").mul_(deviation)
