"""Which grains come, and what they start from: rules from a `Change` and what stays to positions, ascending.

A grain that an update has just dropped may come back: then it has not moved, and keeps its value and its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pollard.kernels.indices.choosing import choose
from pollard.kernels.indices.rewire import sample_grown
from pollard.pruning.masks import top_mask, top_of_runs
from pollard.pruning.running_top import EXCLUDED, RunningTop
from pollard.training.methods.change import Change
from pollard.training.passes import BLOCK

# One row in so many says what the best of all may score, looked at in so many places at least.
SHARE, PLACES = 32, 8

Grow = Callable[[Change, Tensor, int], Tensor]
Start = Callable[[int, torch.Generator], "float | Tensor"]


def at_random(change: Change, stays: Tensor, count: int) -> Tensor:
    """`count` of all that does not stay, each choice equally likely; under `N:M`, where less than N of M stay."""
    topology = change.weight.topology
    if topology.pattern.m:
        return _within_runs(change, stays, _random_blocks(change))
    return sample_grown(change.weight.topology, count, change.generator, stays=stays)


def by_gradient(change: Change, stays: Tensor, count: int) -> Tensor:
    """The largest `|dL/dw|` of all that does not stay, exactly, streamed by row blocks; ties by position.

    Memory O(count + block): the dense gradient never exists. A grain's score is the sum over its weights. Under `N:M`, the
    largest of every M where less than N stay.
    """
    if change.weight.topology.pattern.m:
        return _within_runs(change, stays, change.weight.passes.blocks(change.weight.topology))
    bound = _likely_bound(change, stays, count)
    found = _above(change, stays, count, bound)
    # Where these rows misled, everything is a candidate.
    return found if len(found) == count or bound == EXCLUDED else _above(change, stays, count, EXCLUDED)


def _within_runs(change: Change, stays: Tensor, blocks: Iterator[tuple[int, Tensor]]) -> Tensor:
    """The best of every m by the scores in `blocks`, each with its first row, as many as are missing to n."""
    topology, found = change.weight.topology, []
    staying, (n, m) = change.positions(stays), (topology.pattern.n, topology.pattern.m)
    for row, scores in blocks:
        first, flat = row * topology.width, scores.reshape(-1)
        bounds = torch.searchsorted(staying, torch.tensor([first, first + len(flat)], dtype=torch.int64, device="cpu"))
        held = staying[bounds[0] : bounds[1]] - first
        best = top_of_runs(flat.index_fill(0, held, torch.inf), n, m, layer=change.weight.name)
        best[held] = False
        found.append(best.nonzero().view(-1) + first)
    return torch.cat(found)


def _random_blocks(change: Change) -> Iterator[tuple[int, Tensor]]:
    topology = change.weight.topology
    step = max(1, BLOCK // topology.width)
    for row in range(0, topology.groups, step):
        shape = min(step, topology.groups - row), topology.width
        yield row, torch.rand(shape, dtype=torch.float64, device="cpu", generator=change.generator)


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
