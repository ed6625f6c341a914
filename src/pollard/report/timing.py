"""Milliseconds a call that can be believed: contenders take turns in one process, round by round."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import torch

SAMPLE_SECONDS = 2e-3
TRIES = 5  # calls, where they are short, that say how long one takes
TRIED_SECONDS = 0.1  # after which no further call is tried
LONG_SECONDS = 1.0


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """torch computes on `count` threads within, and on as many as before behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, long: float = LONG_SECONDS
) -> dict[str, list[float]]:
    """Milliseconds a call, `rounds` samples for each of `calls`, taken in turns so that a noisy moment hits all alike.

    Short calls are repeated until a sample lasts 2 ms; a call of over `long` seconds is timed once, before the others. Each sample
    follows one call of its own that is not timed: what is measured is a product in use, not the caches its neighbour left
    behind. The order is drawn anew in each round, the same in every process. The garbage collector waits.
    """
    once = {name: seconds_once(call) for name, call in calls.items()}
    samples = {name: [1e3 * seconds] if seconds > long else [] for name, seconds in once.items()}
    repeats = {name: max(1, round(SAMPLE_SECONDS / max(seconds, 1e-9))) for name, seconds in once.items()}
    order, draw = [name for name in calls if not samples[name]], random.Random(0)  # noqa: S311  an order is no secret
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            draw.shuffle(order)
            for name in order:
                calls[name]()
                samples[name].append(1e3 * _seconds(calls[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return samples


def seconds_once(call: Callable[[], object]) -> float:
    """About how long one call takes, after one that is not timed: the fastest of some, fewer where they are long.

    One that the machine interrupted would make every sample too short.
    """
    call()
    fastest, spent = math.inf, 0.0
    for _ in range(TRIES):
        seconds = _seconds(call, 1)
        fastest, spent = min(fastest, seconds), spent + seconds
        if spent > TRIED_SECONDS:
            break
    return fastest


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats
