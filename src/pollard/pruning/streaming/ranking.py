"""The exact top-k of scores that come some rows at a time, over one layer or over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.pruning.masks import top_of_runs, top_positions
from pollard.pruning.running_top import RunningTop
from pollard.pruning.streaming.scores import Scores

# Grains that may be listed while others are still to come; more than that are told by the lowest score of theirs.
ROOM = 1 << 24
_BINS = 1 << 16


class Border(NamedTuple):
    """Where the best of some layers' grains end: the lowest score of theirs, and the last that has it, by layer and position."""

    threshold: float
    layer: int
    position: int

    def last(self, layer: int) -> int:
        """The last position of a layer that is kept at the threshold."""
        return self.position if layer == self.layer else (-1 if layer > self.layer else np.iinfo(np.int64).max)


class Chosen(NamedTuple):
    """The topologies of some layers, and where the border of what they keep falls among scores of zero: how many of them are kept,
    of how many.
    """

    topologies: dict[str, Topology]
    ties: dict[str, tuple[int, int]]


def best_of(pools: Sequence[Scores], count: int) -> Chosen:
    """The topologies that keep the `count` best grains of all layers in `pools`, which compete; ties by layer, then position."""
    best, ends = RunningTop(count, least=-torch.inf), [0]
    for scores in pools:
        for first, part in scores:
            best.add(ends[-1] + first, part)
        ends.append(ends[-1] + scores.layer.grains)
    positions = best.positions()
    cuts = torch.searchsorted(positions, torch.tensor(ends, dtype=torch.int64, device="cpu")).tolist()
    found = {}
    for scores, start, first, last in zip(pools, ends, cuts, cuts[1:], strict=False):
        found[scores.name] = Topology.from_positions(
            scores.layer.matrix, scores.layer.pattern, positions[first:last] - start
        )
    return Chosen(found, _ties_at_zero(pools, found) if best.least == 0 else {})


def runs_of(scores: Scores) -> Chosen:
    """The topology that keeps the n best of every m."""
    pattern, positions, kept, tied = scores.layer.pattern, [], 0, 0
    for first, part in scores:
        best = top_of_runs(part, pattern.n, pattern.m, layer=scores.name)
        positions.append(best.nonzero().view(-1) + first)
        runs = part.view(-1, pattern.m)
        above, zeros = (runs > 0).sum(1), (runs == 0).sum(1)
        between = (above < pattern.n) & (pattern.n < above + zeros)
        kept, tied = kept + int((pattern.n - above)[between].sum()), tied + int(zeros[between].sum())
    topology = Topology.from_positions(scores.layer.matrix, pattern, torch.cat(positions))
    return Chosen({scores.name: topology}, {scores.name: (kept, tied)} if tied else {})


def _ties_at_zero(pools: Sequence[Scores], found: Mapping[str, Topology]) -> dict[str, tuple[int, int]]:
    ties = {}
    for scores in pools:
        above, zeros, kept = 0, 0, found[scores.name].grains
        for _, part in scores:
            above, zeros = above + int((part > 0).sum()), zeros + int((part == 0).sum())
        if above < kept < above + zeros:
            ties[scores.name] = kept - above, zeros
    return ties


def border(pools: Sequence[Scores], count: int) -> Border:
    """Where the `count` best of all grains of `pools` end, in memory that does not depend on count.

    Scores are counted by the first 16 bits of theirs as float32, those in the bin of the last one by the other 16. Of what is left,
    all alike as float32, the places are listed and ranked exactly; where that would be too many, zeros for one, they are counted.
    """
    high, above = _bin_of(pools, count, 0, lambda bits: bits >= 0)
    low, more = _bin_of(pools, count - above, 16, lambda bits: bits >> 16 == high)
    alike, wanted = (high << 16) + low, count - above - more
    inside, places = [], []
    for number, scores in enumerate(pools):
        for first, part in scores:
            found = (_ordered(part) == alike).nonzero().view(-1)
            inside.append(part[found])
            places.append(torch.stack([torch.full_like(found, number), found + first], 1))
            if sum(map(len, inside)) > ROOM + wanted:
                return _counted(pools, count, float(part[found][0]))
    values, where = torch.cat(inside), torch.cat(places)
    kept = top_positions(values, wanted)
    threshold = values[kept].min()
    layer, position = where[kept[values[kept] == threshold]][-1].tolist()
    return Border(float(threshold), layer, position)


def _bin_of(pools: Sequence[Scores], count: int, bits: int, among: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """Of the scores whose ordered bits are `among` them: which 16 bits, from `bits` on, the `count`-th best has, and how many have more."""
    histogram = torch.zeros(_BINS, dtype=torch.int64, device="cpu")
    for scores in pools:
        for _, part in scores:
            ordered = _ordered(part)
            histogram += (ordered[among(ordered)] >> (16 - bits) & (_BINS - 1)).bincount(minlength=_BINS)
    better = histogram.flip(0).cumsum(0).flip(0)  # in this bin or a higher one
    found = int((better >= count).nonzero().max())
    return found, int(better[found]) - int(histogram[found])


def _counted(pools: Sequence[Scores], count: int, threshold: float) -> Border:
    """Where the `count` best end, at a score that so many share that their places are not to be listed."""
    left = count - sum(int((part > threshold).sum()) for scores in pools for _, part in scores)
    for number, scores in enumerate(pools):
        for first, part in scores:
            tied = part == threshold
            here = int(tied.sum())
            if left <= here:
                return Border(threshold, number, first + int(tied.nonzero()[left - 1]))
            left -= here
    raise InvalidInput(
        "scores that come out differently when they are made again",
        "a criterion that gives the same scores for the same rows",
        "Draw from nothing but the generator that the criterion is given.",
    )


def _ordered(scores: Tensor) -> Tensor:
    """Their 32 bits as float32, int64, in the order of the scores: of negative numbers all bits are turned."""
    bits = (scores.float() + 0.0).view(torch.int32).long()  # -0 equals 0
    return torch.where(bits < 0, ~bits, bits + (1 << 31))


__all__ = ["ROOM", "Border", "best_of", "border", "runs_of"]
