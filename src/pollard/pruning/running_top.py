"""The exact top-k of scores that come a piece at a time and are never held all at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pollard.pruning.masks import top_positions

# Scores of pieces are at least 0; what may not be chosen is given a score below that.
EXCLUDED = -1.0


class RunningTop:
    """The positions of the `count` highest scores seen so far, ties by lowest position: `top_positions`, streamed.

    Memory is proportional to `count` and to the largest piece. Pieces come in ascending order of position.

    >>> running = RunningTop(2)
    >>> running.add(0, torch.tensor([1.0, 3.0, 3.0]))
    >>> running.add(3, torch.tensor([3.0, 4.0]))
    >>> running.positions()
    tensor([1, 4])
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._scores: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._held = 0
        self._least: float | None = None

    def add(self, first: int, scores: Tensor) -> None:
        """Take in the `scores` `(n,)`, 0 or above, of positions `first` and following; EXCLUDED for one that is no candidate."""
        # At the same score an earlier position wins, and all that are held are earlier.
        better = (scores >= 0.0) if self._least is None else (scores > self._least)
        found = torch.from_numpy(np.flatnonzero(better.numpy()))
        self._scores.append(scores.take(found))
        self._positions.append(found + first)
        self._held += len(found)
        if self._held > 2 * self.count + (1 << 12):
            self._narrow()

    def positions(self) -> Tensor:
        """The chosen positions so far, ascending int64: `count`, or all candidates where there were fewer."""
        self._narrow()
        return self._positions[0] if self._positions else torch.empty(0, dtype=torch.int64)

    def _narrow(self) -> None:
        if not self._scores:
            return
        scores, positions = torch.cat(self._scores), torch.cat(self._positions)
        if len(scores) > self.count:
            best = top_positions(scores, self.count)
            scores, positions = scores.take(best), positions.take(best)
        if len(scores) == self.count:
            self._least = float(scores.min()) if self.count else torch.inf
        self._scores, self._positions, self._held = [scores], [positions], len(scores)
