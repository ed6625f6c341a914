"""How far a decision over streamed weights has come."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from pollard.pruning.streaming.forecast import Forecast
from pollard.streamed.source import Over

_LOG = logging.getLogger("pollard")
SHOWN_AFTER, TOLD_EVERY = 2.0, 10.0  # seconds


class Meter:
    """Counts weights as they are made, and tells: on a terminal by a bar, else in lines to the logger `pollard`.

    Used as a context; nothing is told of what is over in two seconds. shown: whether there may be a bar.
    """

    def __init__(self, forecast: Forecast, *, shown: bool = True) -> None:
        self.forecast, self.done, self.shown = forecast, 0, shown
        self.total = max(1, forecast.weights * forecast.passes)
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._started = self._told = time.monotonic()
        if (self.forecast.seconds or 0.0) > SHOWN_AFTER:
            _LOG.info("pruning %s", self.forecast)
            if self.shown:
                self._show()
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
        if out.is_terminal:
            self._bar.console.print(f"pruning {self.forecast}", highlight=False)


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


__all__ = ["Counted", "Meter"]
