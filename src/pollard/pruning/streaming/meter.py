"""How far a decision over streamed weights has come, and whether there is memory for it."""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from pollard.errors import InvalidInput
from pollard.reading import MEMORY, STATUS, told_bytes
from pollard.streamed.source import ROOM, Over

_LOG = logging.getLogger("pollard")
# How often every weight is made for a measurement of one batch, and besides for its score.
PASSES = {"gradient": 2, "hessian_gradient": 5, "synaptic_flow": 2}
SHOWN_AFTER, TOLD_EVERY = 2.0, 10.0  # seconds
# Of a grain that is kept, while others are still to come: half as many again are held, by score and position, and once more while
# they are ranked; then their places in a topology and their values.
KEPT_BYTES, BLOCKS = 48, 6
GIB = 1 << 30


class Meter:
    """Counts weights as they are made, and tells: on a terminal by a bar, else in lines to the logger `pollard`.

    Used as a context; nothing is told of what is over in two seconds. shown: whether there may be a bar.
    """

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self.total, self.done, self.shown = max(1, total), 0, shown
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._started = self._told = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def count(self, weights: int) -> None:
        """So many more have been made."""
        self.done += weights
        now = time.monotonic()
        if self._bar is None and self.shown and now - self._started > SHOWN_AFTER:
            self._show()
        if self._bar is not None:
            self._bar.update(self._task, completed=min(self.done, self.total))
        if now - self._told > TOLD_EVERY:
            self._told = now
            share = min(1.0, self.done / self.total)
            left = (now - self._started) * (1 - share) / max(share, 1e-9)
            _LOG.info("pruning: %.0f %% of the passes over the weights, about %.0f s left", 100 * share, left)

    def _show(self) -> None:
        from rich import console, progress  # start-up time that a short decision should not pay

        out = console.Console(stderr=True)
        columns = progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TimeRemainingColumn()
        self._bar = progress.Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
        self._task = self._bar.add_task("pruning", total=self.total)
        self._bar.start()


@dataclass(frozen=True, slots=True, eq=False)
class Counted(Over):
    """The numbers of `source`, counted as they are made."""

    meter: Meter

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows."""
        self.meter.count((last - first) * self.shape[1])
        return self.source.rows(first, last)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The numbers at these places."""
        return self.source.at(rows, columns)


def require_room(grains: int) -> None:
    """Raises InvalidInput where so many kept grains need more memory than there is; activations come on top, and are not counted."""
    needed, free = grains * KEPT_BYTES + 4 * BLOCKS * ROOM, free_bytes()
    if free is not None and needed > free:
        raise InvalidInput(
            f"{grains:,} weights or grains to keep, which takes about {needed / GIB:.1f} GiB while they are chosen",
            f"no more than the {free / GIB:.1f} GiB that are free here, activations of the batch left out",
            "Lower density=, or free memory.",
        )


def free_bytes() -> int | None:
    """The memory that this process may still take, as far as the system tells."""
    free = [told_bytes(MEMORY, "MemAvailable")]
    limit, mapped = resource.getrlimit(resource.RLIMIT_AS)[0], told_bytes(STATUS, "VmSize")
    if limit != resource.RLIM_INFINITY and mapped is not None:
        free.append(limit - mapped)
    known = [each for each in free if each is not None]
    return min(known) if known else None


__all__ = ["Counted", "Meter", "free_bytes", "require_room"]
