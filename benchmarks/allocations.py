"""Bytes as torch's profiler sees them come and go."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

ALLOCATION = "[memory]"  # how the profiler names each


def allocated(call: Callable[[], object]) -> tuple[int, int]:
    """Bytes that torch has allocated for `call` when it returns, while its result lives, and the most meanwhile.

    What it frees of before counts as less.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = call()
    now = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == ALLOCATION:
            now += event.nbytes()
            most = max(most, now)
    del result
    return now, most
