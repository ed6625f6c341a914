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
from pollard.pruning.streaming.scores import Part, Sampled, Scores
from pollard.streamed.source import CACHED, PACE

# Grains that may be listed while others are still to come; more than that are told by the lowest score of theirs.
ROOM = 1 << 22
_BINS = 1 << 16
PARTS = 16  # of the sample for a guess, of which a rehearsal takes one
SAMPLE = 1 << 22  # grains that are looked at for a guess: of 2**32, it is off by less than ROOM / 4, nine times in ten


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
        for part in scores:
            better = (part.scores > best.least).nonzero().view(-1)
            best.take(part.positions(better) + ends[-1], part.scores[better])
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
    for part in scores:
        best = top_of_runs(part.scores, pattern.n, pattern.m, layer=scores.name)
        positions.append(part.positions(best.nonzero().view(-1)))
        runs = part.scores.view(-1, pattern.m)
        above, zeros = (runs > 0).sum(1), (runs == 0).sum(1)
        between = (above < pattern.n) & (pattern.n < above + zeros)
        kept, tied = kept + int((pattern.n - above)[between].sum()), tied + int(zeros[between].sum())
    topology = Topology.from_positions(scores.layer.matrix, pattern, torch.cat(positions))
    return Chosen({scores.name: topology}, {scores.name: (kept, tied)} if tied else {})


def _ties_at_zero(pools: Sequence[Scores], found: Mapping[str, Topology]) -> dict[str, tuple[int, int]]:
    ties = {}
    for scores in pools:
        above, zeros, kept = 0, 0, found[scores.name].grains
        for _, _, part in scores:
            above, zeros = above + int((part > 0).sum()), zeros + int((part == 0).sum())
        if above < kept < above + zeros:
            ties[scores.name] = kept - above, zeros
    return ties


def border(pools: Sequence[Scores], count: int) -> Border:
    """Where the `count` best of all grains of `pools` end, in memory that does not depend on count.

    Scores are counted by the first 16 bits of theirs as float32, those in the bin of the last one by the other 16, if they are too
    many to be listed. Of what is left the places are listed and ranked exactly; where even those that are alike as float32 are
    too many, zeros for one, they are counted.
    """
    sampled = _sampled(pools)
    if sampled:
        guessed = _guessed(sampled, count)
        if guessed is not None:
            return guessed
    high, above, among = _bin_of(pools, count, 0, lambda bits: bits >= 0)
    wanted, alike, bits = count - above, high, 16
    if among > ROOM:
        low, above, _ = _bin_of(pools, wanted, 16, lambda bits: bits >> 16 == high)
        wanted, alike, bits = wanted - above, (high << 16) + low, 0
    inside, places = [], []
    for number, scores in enumerate(pools):
        for part in scores:
            found = (_ordered(part.scores) >> bits == alike).nonzero().view(-1)
            inside.append(part.scores[found])
            places.append(_where(number, part, found))
            if sum(map(len, inside)) > ROOM + wanted:
                return _counted(pools, count, float(part.scores[found][0]))
    return _ranked(torch.cat(inside), torch.cat(places), wanted)


class Rehearsed:
    """What is done with the scores of layers that compete, of which `count` are kept, over what a rehearsal leaves of them."""

    def __init__(self, pools: Sequence[Scores], count: int) -> None:
        self.pools, self.count = pools, count
        self.grains = sum(scores.layer.grains for scores in pools)

    def go_through(self) -> None:
        """All scores that there are."""
        for scores in self.pools:
            for _ in scores:
                pass

    def list_best(self) -> None:
        """As `best_of`; ranked are some other numbers, in the place of all scores."""
        self.go_through()
        some = min(self.grains, SAMPLE)
        with PACE.get().one_of(self.grains / some):
            best, place = RunningTop(max(1, self.count * some // self.grains), least=-torch.inf), 0
            for part in torch.rand(
                some, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
            ).split(CACHED):
                better = (part > best.least).nonzero().view(-1)
                best.take(better + place, part[better])
                place += len(part)
            best.positions()

    def look(self) -> None:
        """As `border`."""
        sampled = _sampled(self.pools)
        if not sampled:
            for _ in range(2):
                _bin_of(self.pools, 1, 0, lambda bits: bits >= 0)
            return
        with PACE.get().one_of(PARTS):
            values = torch.cat([scores.sample(-(-_share(scores, sampled) // PARTS)) for scores in sampled])
            dropped = int((1 - self.count / self.grains) * len(values))
            end = float(values.sort().values[dropped]) if dropped < len(values) else 0.0
        for scores in sampled:
            for part, _ in scores.up_to(end):
                (part.scores > end).nonzero()


def _sampled(pools: Sequence[Scores]) -> list[Sampled]:
    """All of them, where some scores of each are sooner made than all; else none."""
    found = [scores for scores in pools if isinstance(scores, Sampled)]
    return found if len(found) == len(pools) else []


def _guessed(pools: Sequence[Sampled], count: int) -> Border | None:
    """The border, in one pass, between two scores that a sample tells; None where it is not between them."""
    low, high = _ends([scores.sample(_share(scores, pools)) for scores in pools], pools, count)
    above, held, inside, places = 0, 0, [], []
    for number, scores in enumerate(pools):
        for part, more in scores.up_to(high):
            above += more + int((part.scores > high).sum())
            found = ((part.scores >= low) & (part.scores <= high)).nonzero().view(-1)
            inside.append(part.scores[found])
            places.append(_where(number, part, found))
            held += len(found)
            if held > ROOM:
                return None
    wanted = count - above
    return _ranked(torch.cat(inside), torch.cat(places), wanted) if 0 < wanted <= held else None


def _share(scores: Scores, pools: Sequence[Scores]) -> int:
    """How many of a layer's weights are looked at for a guess."""
    total = sum(each.layer.weights for each in pools)
    return -(-min(SAMPLE, total // 16) * scores.layer.weights // total)


def _ends(samples: Sequence[Tensor], pools: Sequence[Scores], count: int) -> tuple[float, float]:
    """Two scores that the border lies between, most likely: so that about half of ROOM do."""
    each = [scores.layer.weights / _share(scores, pools) for scores in pools]
    values = torch.cat(list(samples))
    stand_for = torch.cat([torch.full_like(found, one) for found, one in zip(samples, each, strict=True)])
    values, order = values.sort(descending=True)
    ranks = torch.tensor([count - ROOM // 4, count + ROOM // 4], dtype=values.dtype, device="cpu")
    upper, lower = torch.searchsorted(stand_for[order].cumsum(0), ranks).tolist()
    high = float(values[upper]) if 0 < upper < len(values) else torch.inf
    return float(values[lower]) if lower < len(values) else -torch.inf, high


def _where(number: int, part: Part, found: Tensor) -> Tensor:
    """Layer and position, `(n, 2)`, of those `found` among some grains of a layer."""
    return torch.stack([torch.full_like(found, number), part.positions(found)], 1)


def _ranked(values: Tensor, where: Tensor, wanted: int) -> Border:
    """The border of the best of these scores, which are `where`: layer and position."""
    kept = top_positions(values, wanted)
    threshold = values[kept].min()
    layer, position = where[kept[values[kept] == threshold]][-1].tolist()
    return Border(float(threshold), layer, position)


def _bin_of(pools: Sequence[Scores], count: int, bits: int, among: Callable[[Tensor], Tensor]) -> tuple[int, int, int]:
    """Of the scores whose ordered bits are `among` them: which 16 bits, from `bits` on, the `count`-th best has, how many have more,
    and how many the same.
    """
    histogram = torch.zeros(_BINS, dtype=torch.int64, device="cpu")
    for scores in pools:
        for _, _, part in scores:
            ordered = _ordered(part)
            histogram += (ordered[among(ordered)] >> (16 - bits) & (_BINS - 1)).bincount(minlength=_BINS)
    better = histogram.flip(0).cumsum(0).flip(0)  # in this bin or a higher one
    found = int((better >= count).nonzero().max())
    return found, int(better[found]) - int(histogram[found]), int(histogram[found])


def _counted(pools: Sequence[Scores], count: int, threshold: float) -> Border:
    """Where the `count` best end, at a score that so many share that their places are not to be listed."""
    left = count - sum(int((part > threshold).sum()) for scores in pools for _, _, part in scores)
    for number, scores in enumerate(pools):
        for part in scores:
            tied = (part.scores == threshold).nonzero().view(-1)
            here = len(tied)
            if left <= here:
                return Border(threshold, number, int(part.positions(tied[left - 1])))
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


__all__ = ["ROOM", "Border", "Rehearsed", "best_of", "border", "runs_of"]
