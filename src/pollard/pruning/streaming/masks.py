"""What has been kept so far, as masks whose rows are made when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.pruning.masks import top_of_runs
from pollard.pruning.streaming.scores import Scores
from pollard.streamed.source import Places, Source, blocks


@dataclass(frozen=True, slots=True, eq=False)
class Listed(Source):
    """The mask of a topology."""

    topology: Topology
    dtype = torch.bool

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Of the weight."""
        return self.topology.shape

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows: True where kept."""
        vectors = self.topology.vectors
        height, width = vectors.pattern.rows, vectors.shape[1]
        begin, end = first // height, -(-last // height)
        pointers = vectors.indices.row_pointers.numpy()
        columns = vectors.indices.columns.numpy()[pointers[begin] : pointers[end]]
        groups = np.repeat(np.arange(end - begin), np.diff(pointers[begin : end + 1]))
        grains = torch.zeros(end - begin, width, dtype=torch.bool, device="cpu")
        grains.numpy()[groups, columns] = True
        return vectors.pattern.spread(grains)[first - begin * height : last - begin * height]

    @property
    def is_sparse(self) -> bool:
        """Whether weights are kept one by one."""
        return self.topology.pattern.size == 1

    def places(self, first: int, last: int) -> Places:
        """What is kept of those rows."""
        pointers = self.topology.indices.row_pointers[first : last + 1].long()
        columns = self.topology.indices.columns[int(pointers[0]) : int(pointers[-1])]
        return Places(pointers.diff(), columns.long())


class Surviving(Source):
    """What has a score above `threshold`, or one that equals it at or before `last`, the position of a grain.

    Scores are made of the same rows at a time whenever they are made, so that they come out alike, bit for bit. Those of a round
    look at the mask of the round before, more than once: so the block that was made last is held, until the next round's is made.
    """

    dtype = torch.bool

    def __init__(self, scores: Scores, threshold: float, last: int) -> None:
        self.scores, self.threshold, self.last = scores, threshold, last
        self.shape = scores.layer.matrix
        self._held: tuple[int, Tensor] | None = None

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows: True where kept."""
        found = [
            self._whole(begin, end)[max(first - begin, 0) : last - begin]
            for begin, end in blocks(self.shape)
            if begin < last and first < end
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def let_go(self) -> None:
        """Holds no block."""
        self._held = None

    def _whole(self, begin: int, end: int) -> Tensor:
        rounds = [self]
        while not rounds[-1].holds(begin) and isinstance(before := rounds[-1].scores.allowed, Surviving):
            rounds.append(before)
        for each in reversed(rounds):  # the first round first: each finds what the one before has made
            each._make(begin, end)
        assert self._held is not None
        return self._held[1]

    def holds(self, begin: int) -> bool:
        """Whether the block that begins there was made last."""
        return self._held is not None and self._held[0] == begin

    def _make(self, begin: int, end: int) -> None:
        if not self.holds(begin):
            kept = self._best(begin, self.scores.part(begin, end))
            if isinstance(self.scores.allowed, Surviving):
                self.scores.allowed.let_go()
            self._held = begin, self.scores.layer.pattern.spread(kept)

    def _best(self, begin: int, scores: Tensor) -> Tensor:
        pattern = self.scores.layer.pattern
        if pattern.m:
            return top_of_runs(scores.flatten(), pattern.n, pattern.m).view(scores.shape)
        kept = scores > self.threshold
        ties = min(max(self.last + 1 - begin // pattern.rows * scores.shape[1], 0), scores.numel())
        kept.view(-1)[:ties] |= scores.reshape(-1)[:ties] == self.threshold
        return kept


__all__ = ["Listed", "Surviving"]
