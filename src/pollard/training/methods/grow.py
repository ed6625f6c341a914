"""Which grains come, and what they start from: rules from a `Change` and what stays to positions, ascending.

A grain that an update has just dropped may come back: then it has not moved, and keeps its value and its state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pollard.kernels.choosing import choose
from pollard.kernels.rewire import sample_grown
from pollard.pruning.running_top import RunningTop
from pollard.training.methods.change import Change

Grow = Callable[[Change, Tensor, int], Tensor]
Start = Callable[[int, torch.Generator], "float | Tensor"]


def at_random(change: Change, stays: Tensor, count: int) -> Tensor:
    """`count` of all that does not stay, each choice equally likely."""
    return sample_grown(change.weight.topology, count, change.generator, stays=stays)


def by_gradient(change: Change, stays: Tensor, count: int) -> Tensor:
    """The largest `|dL/dw|` of all that does not stay, exactly, streamed by row blocks; ties by position.

    Memory O(count + block): the dense gradient never exists. A grain's score is the sum over its weights.
    """
    passes, topology = change.weight.passes, change.weight.topology
    running = RunningTop(count)
    for group, block in passes.blocks(topology):
        running.take(*choose(topology, stays, group, block, running.least))
    return running.positions()


def from_zero(count: int, generator: torch.Generator) -> float:
    """Grown weights start at zero."""
    del count, generator
    return 0.0


def from_normal(deviation: float) -> Start:
    """Grown weights start from N(0, deviation^2)."""
    return lambda count, generator: torch.randn(count, generator=generator).mul_(deviation)
