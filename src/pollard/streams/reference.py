"""Numbers of a stream in plain torch, on any device: the specification. A few at a time, since a number takes many words on its way."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.kernels.code.emit.stream import COUNTERS, TILE, WORDS
from pollard.kernels.code.philox import words
from pollard.streams.law import Law

SOME = 1 << 16  # counters, or positions, at a time


def fill(law: Law, first: int, out: Tensor) -> None:
    """Write the rows of the stream from `first` on to `out`, of any strides."""
    rows, columns = out.shape
    tiles = -(-columns // TILE)
    counters = torch.arange(tiles * COUNTERS, dtype=torch.int64, device=out.device)
    high = max(1, SOME // max(1, len(counters)))
    for start in range(0, rows, high):
        part = out[start : start + high]
        row = torch.arange(first + start, first + start + len(part), dtype=torch.int64, device=out.device)[:, None]
        numbers = law.numbers(words([counters, row, law.layer, law.draw], law.key))
        # (rows, tiles, words, counters of a tile)
        laid = torch.stack([number.view(-1, tiles, COUNTERS) for number in numbers], dim=2)
        part.copy_(laid.view(len(part), -1)[:, :columns])


def at(law: Law, rows: Tensor, columns: Tensor) -> Tensor:
    """The numbers at these positions."""
    out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    for start in range(0, len(rows), SOME):
        row, column = (places[start : start + SOME] for places in (rows, columns))
        counter = column // TILE * COUNTERS + column % COUNTERS
        word = column // COUNTERS % WORDS
        numbers = law.numbers(words([counter, row, law.layer, law.draw], law.key))
        out[start : start + SOME] = torch.stack(numbers).gather(0, word[None])[0]
    return out
