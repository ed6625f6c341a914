"""What a decision over streamed weights will take, told before it begins."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

from pollard.errors import InvalidInput
from pollard.pruning.network import Network
from pollard.pruning.streaming.ranking import ROOM
from pollard.pruning.streaming.rehearsal import Part, Room, Times, room_for, seconds_for
from pollard.reading import MEMORY, STATUS, told_bytes

# How often every weight is made for a measurement of one batch, and besides for its score.
PASSES = {"gradient": 2, "hessian_gradient": 5, "synaptic_flow": 2}
# Of a grain that is kept, while others are still to come: half as many again are held, by score and position, and once more while
# they are ranked; then their places in a topology and their values.
KEPT_BYTES = 48
HOLES = 2  # of what comes and goes by turns, the allocator of the C library keeps as much again
TIMED = 1 << 31  # numbers to be made of which it is worth a rehearsal to know the time: a twentieth of it, at most
GB = 10**9


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a decision over weights without memory will take on this machine, as `prune(..., forecast=print)` is told before it begins.

    weights: of all layers that are decided over; kept: of their grains. samples: that are looked at. passes: how often all weights are
    made. kept_bytes: of scores and places of what is kept; block_bytes: of rows of weights; sample_bytes: of activations and
    gradients of layers, for all samples, or None where the model takes no fewer samples and so was not rehearsed. seconds: by the
    rate that some rows of each weight take here and now, each round as long as the first; None where fewer than two billion
    numbers are to be made, which takes seconds. free_bytes: what there is, or None where the system does not tell.

    >>> print(Forecast(2_000_000_000, 2_000_000, 128, 3, 96_000_000, 50_000_000, 60_000_000, 71.0, 8 * GB))
    2,000,000,000 weights to 2,000,000 takes about 0.21 GB: 0.10 for what is kept, 0.05 for rows of weights, 0.06 for 128 samples; and about 71 s, 3 passes over all weights
    """

    weights: int
    kept: int
    samples: int
    passes: int
    kept_bytes: int
    block_bytes: int
    sample_bytes: int | None
    seconds: float | None
    free_bytes: int | None

    @property
    def peak_bytes(self) -> int:
        """All of them together: more than there is at any moment, by what is not needed at the same time."""
        return self.kept_bytes + self.block_bytes + (self.sample_bytes or 0)

    def require_room(self) -> None:
        """Raises InvalidInput where that is more than is free."""
        if self.free_bytes is None or self.peak_bytes <= self.free_bytes:
            return
        fewer = "Give fewer samples" if (self.sample_bytes or 0) > self.kept_bytes else "Lower density="
        raise InvalidInput(
            f"a decision from {self}",
            f"no more than the {self.free_bytes / GB:.2f} GB that are free here",
            f"{fewer}, or free memory.",
        )

    def __str__(self) -> str:
        parts = [
            f"{self.kept_bytes / GB:.2f} for what is kept",
            f"{self.block_bytes / GB:.2f} for rows of weights",
            *(
                [f"{self.sample_bytes / GB:.2f} for {self.samples:,} samples"]
                if self.samples and self.sample_bytes
                else []
            ),
        ]
        takes = (
            f"{self.weights:,} weights to {self.kept:,} takes about {self.peak_bytes / GB:.2f} GB: {', '.join(parts)}"
        )
        return takes + (
            f"; and about {self.seconds:,.0f} s, {self.passes:,} passes over all weights" if self.seconds else ""
        )


def foresee(network: Network, counts: Sequence[int], needs: Sequence[str], part: Part) -> Forecast:
    """The forecast for a decision by what `needs` names, whose rounds keep so many grains.

    Reads the first batch, and rehearses: what it looks at is left as it was.
    """
    weights = sum(each.numel() for each in network.weights.values())
    measured = sum(PASSES.get(each, 0) for each in needs)
    *before, last = counts
    looked_for = sum(count > ROOM for count in before)  # its end, before it is told by that; the others are listed
    times: Times | None = None
    with network.undisturbed():
        samples, pieces = (network.samples, network.pieces) if measured else (0, 1)
        passes = len(counts) * (measured * pieces + 1) + looked_for
        try:
            room: Room | None = room_for(network, samples, pieces, part)
            if weights * passes >= TIMED:
                times = seconds_for(network, samples, pieces, part, look=looked_for > 0)
        except (InvalidInput, RuntimeError):  # of fewer samples than it is made for; else it comes again
            room = None
    seconds = times and (
        times.measuring * len(counts) + times.listing * (len(counts) - looked_for) + times.looking * looked_for
    )
    return Forecast(
        weights,
        last,
        samples * pieces,
        passes,
        KEPT_BYTES * max(last, *(min(ROOM, count) for count in before), 0),
        HOLES * (room.blocks if room else 0),
        HOLES * room.samples if room else None,
        seconds,
        free_bytes(),
    )


def free_bytes() -> int | None:
    """The memory that this process may still take, as far as the system tells."""
    free = [told_bytes(MEMORY, "MemAvailable")]
    limit, mapped = resource.getrlimit(resource.RLIMIT_AS)[0], told_bytes(STATUS, "VmSize")
    if limit != resource.RLIM_INFINITY and mapped is not None:
        free.append(limit - mapped)
    known = [each for each in free if each is not None]
    return min(known) if known else None


__all__ = ["Forecast", "foresee", "free_bytes"]
