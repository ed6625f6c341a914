"""What a decision takes on this machine, told by rehearsals of it: of a few samples, and of a few rows of each weight."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pollard.pruning.network import Network
from pollard.pruning.streaming.ranking import Rehearsed
from pollard.streamed.source import GRAIN, PACE, Cuts, Pace
from pollard.streamed.tensor import StreamedTensor

# Measures a network, as each round does, and gives what is done with the scores of layers that compete.
Part = Callable[[Network], Sequence[Rehearsed]]
SHARE = 16  # of the rows of a weight: what is timed of them, and a block at most


class Room(NamedTuple):
    """Bytes that a measurement takes where it takes most: of rows of weights, and of what hangs on samples."""

    blocks: int
    samples: int


class Times(NamedTuple):
    """Seconds of a measurement, and of what a round does then."""

    measuring: float
    listing: float
    looking: float


def room_for(network: Network, samples: int, pieces: int, part: Part) -> Room:
    """The bytes that `part` takes of `network` when so many `samples` pass at once, so many `pieces` of them one after the other.

    Told by three rehearsals, operator by operator: of a few samples with the first rows of each weight, of one sample more, of
    blocks of rows. What is there after each grows in proportion.
    """
    few = min(samples, 2)
    told = [
        _bytes(network.of_few(few), _FirstRows(), part),
        _bytes(network.of_few(min(samples, few + 1)), _FirstRows(), part),
        _bytes(network.of_few(few), _FirstBlock(samples / max(1, few)), part),
    ]
    if len(set(map(len, told))) > 1:  # they went different ways: what is most of each is compared
        told = [[max(each, default=0)] for each in told]
    plain, more, whole = told
    each = [after - before for before, after in zip(plain, more, strict=True)]
    found = [
        Room(block - own, own + rise * (samples - few)) for own, rise, block in zip(plain, each, whole, strict=True)
    ]
    most = max(found, key=sum, default=Room(0, 0))
    # Inputs and gradients of layers are held until they are scored.
    held = each[-1] * samples if each else 0
    return most._replace(samples=most.samples + held * (pieces - 1))


def seconds_for(network: Network, samples: int, pieces: int, part: Part, *, look: bool) -> Times:
    """The seconds that `part` takes, told by some rows of each weight; the others are taken to be as fast.

    look: whether the end of what is kept is looked for too, in some rounds.
    """
    few, pace = network.of_few(samples), _SomeRows()
    with few.undisturbed(), _at(pace):
        told = [pace.clock()]
        scored = part(few)
        told.append(pace.clock())
        for each in scored:
            each.list_best()
        told.append(pace.clock())
        for each in scored if look else ():
            each.look()
        told.append(pace.clock())
    measuring, listing, looking = (after - before for before, after in pairwise(told))
    return Times(measuring * pieces, listing, looking)


def _bytes(network: Network, pace: Pace, part: Part) -> list[int]:
    """The bytes that are there after each operator."""
    alive = _Alive()
    with network.undisturbed(), _at(pace), alive:
        for each in part(network):
            each.go_through()
    return alive.told


class _Alive(TorchDispatchMode):
    """Notes the bytes of the tensors that are made meanwhile and still there: after each operator, in `told`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.bytes = 0
        self.told: list[int] = []
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As ever, and noted."""
        del types
        kwargs = kwargs or {}
        self._note((args, kwargs), new=False)
        made = func(*args, **kwargs)
        self._note(made, new=True)
        self.told.append(self.bytes)
        return made

    def _note(self, tensors: Any, *, new: bool) -> None:
        for each in tree_leaves(tensors):
            if isinstance(each, Tensor) and not isinstance(each, StreamedTensor):
                storage = each.untyped_storage()
                key, size = storage._cdata, storage.nbytes() if new else 0  # noqa: SLF001 - what torch tells storages apart by
                if key not in self._known:
                    self._known.add(key)
                    self.bytes += size
                    weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


class _FirstRows(Pace):
    """The first rows of a matrix, as few as whole grains allow."""

    def left(self, shape: tuple[int, int], cuts: Cuts) -> Cuts:
        """Those rows."""
        del shape
        first, last = next(cuts, (0, 0))
        yield first, min(last, first + GRAIN)


class _FirstBlock(Pace):
    """The first block of rows of a matrix, as large as it will be for `growth` times the samples."""

    def __init__(self, growth: float) -> None:
        self.growth = growth

    def left(self, shape: tuple[int, int], cuts: Cuts) -> Cuts:
        """That block."""
        del shape
        yield from islice(cuts, 1)


class _SomeRows(Pace):
    """Some rows of a matrix to get warm, and as many to take the time of, by which that of all others is told."""

    def __init__(self) -> None:
        self._left_out = 0.0

    def clock(self) -> float:
        """Seconds, those of rows that were left out among them."""
        return time.perf_counter() + self._left_out

    @contextmanager
    def one_of(self, parts: float) -> Iterator[None]:
        """The time of the block counts for all `parts`."""
        began = time.perf_counter()
        yield
        self._left_out += (time.perf_counter() - began) * (parts - 1)

    def left(self, shape: tuple[int, int], cuts: Cuts) -> Cuts:
        """Two parts of the first rows, of no more than a block each."""
        first, last = next(cuts, (0, 0))
        some = min(last - first, max(1, shape[0] // (SHARE * GRAIN)) * GRAIN)
        warm, end = first + some, min(shape[0], first + 2 * some)
        yield first, warm
        if end > warm:
            began = time.perf_counter()
            yield warm, end
            self._left_out += (time.perf_counter() - began) * (shape[0] - end) / (end - warm)


@contextmanager
def _at(pace: Pace) -> Iterator[None]:
    """Within the block, matrices are gone through at that pace."""
    token = PACE.set(pace)
    try:
        yield
    finally:
        PACE.reset(token)


__all__ = ["Part", "Room", "Times", "room_for", "seconds_for"]
