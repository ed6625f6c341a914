"""The exact top-k of scores that come a piece at a time and are never held all at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.pruning.masks import top_positions

# Scores of pieces are at least 0; what may not be chosen is given a score below that.
EXCLUDED = -1.0


class RunningTop:
    """The positions of the `count` highest scores seen so far, ties by lowest position: `top_positions`, streamed.

    Memory is proportional to `count` and to the largest piece. Pieces come in ascending order of position.
    least: what no score that may be chosen is at or below.

    >>> running = RunningTop(2)
    >>> running.add(0, torch.tensor([1.0, 3.0, 3.0]))
    >>> running.add(3, torch.tensor([3.0, 4.0]))
    >>> running.positions()
    tensor([1, 4])
    """

    def __init__(self, count: int, least: float = EXCLUDED) -> None:
        self.count = count
        # What is not above it has no part in the choice.
        self.least = least
        self._scores: NDArray[np.floating[Any]] = np.empty(0, np.float32)
        self._positions: NDArray[np.int64] = np.empty(0, np.int64)
        self._held = 0

    def add(self, first: int, scores: Tensor) -> None:
        """Take in the `scores` `(n,)`, 0 or above, of positions `first` and following; EXCLUDED for one that is no candidate."""
        # At the same score an earlier position wins, and all that are held are earlier.
        found = np.flatnonzero(scores.numpy() > self.least)
        self.take(torch.from_numpy(found + first), scores[torch.from_numpy(found)])

    def take(self, positions: Tensor, scores: Tensor) -> None:
        """Take in these `scores` `(n,)`, above `least`, of ascending int64 `positions`; others in between are no candidates."""
        if self._held + len(scores) > len(self._scores):
            self._narrow()
        self._make_room(len(scores), scores.numpy().dtype)
        room = slice(self._held, self._held + len(scores))
        self._scores[room], self._positions[room] = scores.numpy(), positions.numpy()
        self._held += len(scores)
        if self._held > self.count + self.count // 2:
            self._narrow()

    def positions(self) -> Tensor:
        """The chosen positions so far, ascending int64: `count`, or all candidates where there were fewer."""
        self._narrow()
        return torch.from_numpy(self._positions[: self._held].copy())

    def _make_room(self, more: int, dtype: np.dtype[np.floating[Any]]) -> None:
        # Half as much again as is chosen, and what one piece may bring: room that stays, since fresh memory costs more than all else.
        if self._held + more > len(self._scores):
            size = max(self.count + self.count // 2, self._held) + more
            scores, positions = np.empty(size, dtype), np.empty(size, np.int64)
            scores[: self._held], positions[: self._held] = self._scores[: self._held], self._positions[: self._held]
            self._scores, self._positions = scores, positions

    def _narrow(self) -> None:
        if self._held < self.count or not self._held:
            return
        if self._held > self.count:
            best = top_positions(torch.from_numpy(self._scores[: self._held]), self.count).numpy()
            self._scores[: self.count] = self._scores[best]
            self._positions[: self.count] = self._positions[best]
            self._held = self.count
        self.least = float(self._scores[: self.count].min()) if self.count else math.inf
