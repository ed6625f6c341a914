"""What a number of a stream depends on, its place left out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from pollard.kernels.code.philox import key, slot
from pollard.streams.deviates import normal_pair, uniform


class Law(NamedTuple):
    """The parameter, and the law of its numbers: uniform or normal ones, times `scale`, plus `start`, both float32."""

    seed: int
    layer: int
    draw: int
    kind: Literal["uniform", "normal"]
    scale: float
    start: float

    @property
    def key(self) -> tuple[int, int]:
        """The key of the generator: the lower and the upper half of the seed."""
        return key(self.seed)

    def numbers(self, words: Sequence[Tensor]) -> list[Tensor]:
        """The numbers of two or four random words, float32."""
        if self.kind == "uniform":
            made = [uniform(word) for word in words]
        else:
            pairs = zip(words[::2], words[1::2], strict=True)
            made = [number for pair in pairs for number in normal_pair(*pair)]
        return [number * self.scale + self.start for number in made]

    def slots(self) -> dict[str, int]:
        """What a kernel is told of it."""
        scale, start = struct.unpack("ii", struct.pack("ff", self.scale, self.start))
        return {"SEED": slot(self.seed), "LAYER": self.layer, "DRAW": self.draw, "SCALE": scale, "START": start}
