"""What may watch a training run: a progress bar, TensorBoard events, anything with the same four methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pollard.training.metrics import Number


class Observer(Protocol):
    """Told what happens, never asked: watching a run cannot change it."""

    def begin(self, step: int, steps: int) -> None:
        """Training starts, or goes on, after `step` of `steps` steps."""

    def after_step(self, step: int, loss: float) -> None:
        """`step` steps are done; `loss` is the mean over the last batch."""

    def after_epoch(self, record: Mapping[str, Number]) -> None:
        """An epoch is done and evaluated; `record` is what the metrics file holds of it."""

    def end(self) -> None:
        """Training is over, finished or not."""


class ProgressBar:
    """A bar on standard error: steps, loss, accuracy, time left."""

    def __init__(self, task: str = "training") -> None:
        from rich import console, progress  # start-up time that a run without a bar should not pay

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeRemainingColumn(),
            console=console.Console(stderr=True),
        )
        self._task = self._progress.add_task(task, total=None, figures="")
        self._accuracy = ""

    def begin(self, step: int, steps: int) -> None:
        """Show the bar at `step`."""
        self._progress.update(self._task, completed=step, total=steps)
        self._progress.start()

    def after_step(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step, figures=f"loss {loss:.4f}{self._accuracy}")

    def after_epoch(self, record: Mapping[str, Number]) -> None:
        """Show the newest test accuracy from now on."""
        if "test_accuracy" in record:
            self._accuracy = f"  test accuracy {record['test_accuracy']:.4f}"

    def end(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


class TensorBoard:
    """Event files in `folder`; a resumed run purges what a killed one wrote after its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, step: int, steps: int) -> None:  # noqa: ARG002  a bar needs the second
        """Open a new event file that starts after `step`."""
        from torch.utils.tensorboard import SummaryWriter  # loads tensorboard, which takes seconds

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def after_step(self, step: int, loss: float) -> None:
        """Write the loss of the step."""
        self._writer.add_scalar("loss/step", loss, step)

    def after_epoch(self, record: Mapping[str, Number]) -> None:
        """Write each figure of the epoch at its step."""
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self._writer.add_scalar(name.replace("_", "/", 1), value, record["step"])

    def end(self) -> None:
        """Close the event file."""
        self._writer.close()
