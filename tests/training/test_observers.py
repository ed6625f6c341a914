"""Watching a run: a bar, TensorBoard events that a resumed run does not double."""

from __future__ import annotations

import pytest

from pollard.training import ProgressBar, TensorBoard


def watch(observer, first, steps):
    observer.begin(first, 10)
    for step in range(first + 1, steps + 1):
        observer.after_step(step, 1.0 / step)
    observer.after_epoch({"epoch": 1, "step": steps, "test_accuracy": 0.5, "test_loss": 2.0})
    observer.end()


def test_the_bar_shows_steps_loss_and_accuracy(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    bar = ProgressBar()
    bar.begin(0, 2)
    bar.after_step(1, 0.5)
    bar.after_epoch({"test_accuracy": 0.25})
    bar.after_step(2, 0.125)
    bar.end()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err
    assert "loss 0.1250  test accuracy 0.2500" in shown.err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own dependencies
def test_a_resumed_run_purges_the_events_after_its_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow, and used here alone

    watch(TensorBoard(tmp_path), 0, 6)
    watch(TensorBoard(tmp_path), 4, 8)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/step")] == list(range(1, 9))
    assert [event.step for event in events.Scalars("test/accuracy")] == [8]
