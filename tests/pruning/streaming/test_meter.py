"""What is told of a long decision, and that one for which there is no memory does not begin."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput
from pollard.formats.store import save_tensors
from pollard.pruning.streaming import forecast, meter
from pollard.pruning.streaming.forecast import free_bytes
from pollard.pruning.streaming.meter import Meter

BATCH = torch.randn(12, 20), torch.arange(12) % 5


def streamed():
    with pollard.never_dense(0):
        return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


@pytest.fixture
def meters(monkeypatch):
    """All that are made."""
    made = []
    monkeypatch.setattr(Meter, "__exit__", lambda self, *_: made.append(self))
    return made


@pytest.mark.parametrize(
    ("rule", "batch", "options"),
    [
        ("magnitude", None, {}), ("snip", BATCH, {}), ("snip", [BATCH, BATCH], {}), ("snip", BATCH, {"scoring": pollard.Scoring(chunk_size=5)}),
        ("iter-snip", BATCH, {"rounds": 3}), ("grasp", BATCH, {}), ("synflow", BATCH, {"rounds": 4}),
    ],
)  # fmt: skip
def test_the_passes_are_known_beforehand(rule, batch, options, meters):
    pollard.prune(streamed(), rule, 0.1, batch, **options)
    (used,) = meters
    assert 0.75 * used.total <= used.done <= 1.25 * used.total


def test_what_takes_long_is_told_to_the_logger(monkeypatch, caplog):
    monkeypatch.setattr(meter, "TOLD_EVERY", -1.0)
    monkeypatch.setattr(meter, "SHOWN_AFTER", -1.0)
    with caplog.at_level(logging.INFO, "pollard"):
        pollard.prune(streamed(), "snip", 0.1, BATCH)
    assert "% of the passes over the weights" in caplog.text


def test_one_bar_shows_how_far_a_decision_is(monkeypatch, tmp_path):
    shown = []

    def show(self):
        shown.append(self)

    monkeypatch.setattr(meter, "SHOWN_AFTER", -1.0)
    monkeypatch.setattr(Meter, "_show", show)
    file = tmp_path / "dense.safetensors"
    save_tensors(file, {"fc.weight": torch.randn(8, 4)}, {})
    pollard.prune_checkpoint(file, tmp_path / "sparse.safetensors", watch=lambda what, done, total: None)
    assert not shown  # whoever watches shows it
    pollard.prune(streamed(), "magnitude", 0.1)
    assert shown


def test_the_model_keeps_its_own_weights(meters):
    model = streamed()
    pollard.prune(model, "snip", 0.1, BATCH)
    assert repr(model[0].weight.source).startswith("Stream(")


def test_what_cannot_fit_is_refused_before_it_begins(monkeypatch):
    monkeypatch.setattr(forecast, "free_bytes", lambda: 1 << 10)
    with pytest.raises(InvalidInput, match="GB"):
        pollard.prune(streamed(), "snip", 0.1, BATCH)


def test_what_is_free_is_less_than_what_there_is():
    free = free_bytes()
    assert free is None or 0 < free < 1 << 50


def test_stopping_changes_nothing(monkeypatch):
    model = streamed()

    def stopped(self, weights):
        raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "count", stopped)
    with pytest.raises(KeyboardInterrupt):
        pollard.prune(model, "snip", 0.1, BATCH)
    monkeypatch.undo()
    assert pollard.prune(model, "snip", 0.1, BATCH).nnz > 0
