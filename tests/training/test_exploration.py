"""Which weights were ever kept: exact in small layers, of some rows in large ones."""

from __future__ import annotations

import pytest
import torch

from pollard.formats.topology import Topology
from pollard.training import exploration
from pollard.training.exploration import Exploration

SHAPE = (60, 50)


def drawn(seed, density=0.1):
    return Topology.random(SHAPE, density, generator=torch.Generator().manual_seed(seed))


def test_every_grain_that_was_ever_kept_counts_once():
    explored = Exploration(drawn(0))
    for seed in (1, 2, 1):
        explored.add(drawn(seed).positions())
    ever = drawn(0).mask() | drawn(1).mask() | drawn(2).mask()
    assert explored.rate == float(ever.double().mean())


def test_where_marks_would_outgrow_what_is_kept_some_rows_are_counted(monkeypatch):
    monkeypatch.setattr(exploration, "SMALL", 1)
    explored = Exploration(drawn(0))
    explored.add(drawn(1).positions())
    ever = drawn(0).mask() | drawn(1).mask()
    marks = explored.state_dict()["marks"]
    # A byte a grain that is kept, to the row.
    assert len(marks) <= drawn(0).grains + SHAPE[1]
    assert explored.rate == float(ever[:: explored.state_dict()["every"]].double().mean())
    assert explored.rate == pytest.approx(float(ever.double().mean()), abs=0.1)


def test_it_goes_on_from_what_it_saved():
    explored, other = Exploration(drawn(0)), Exploration(drawn(1))
    other.load_state_dict(explored.state_dict())
    other.add(drawn(2).positions())
    assert explored.rate < other.rate
    explored.add(drawn(2).positions())
    assert explored.rate == other.rate
