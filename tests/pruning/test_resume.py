"""Rounds that go on where they were stopped: the plan is the one that an undisturbed call makes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput, StoreError
from pollard.pruning.rounds import Finished, RoundsFile
from pollard.pruning.scoring import Rounds
from pollard.pruning.streaming import decision as streamed_decision

BATCH = torch.randn(16, 12, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 5
COUNT = 6


def network(streamed=False, seed=0):
    with pollard.never_dense(seed):
        model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 5))
    return model if streamed else pollard.densify_(model)


def planned(model, criterion, path=None, seed=7, **options):
    draw = torch.Generator().manual_seed(seed)
    rounds = Rounds(COUNT, resume=path)
    return pollard.prune(model, criterion, 0.15, BATCH, rounds=rounds, generator=draw, **options)


class Stop(Exception):
    """As if the machine went off."""


def stopped_after(rounds, monkeypatch, *args, **options):
    """A call of `planned` that ends once so many rounds are finished."""
    write = RoundsFile.write

    def stop(self, finished, generator):
        write(self, finished, generator)
        if finished.rounds == rounds:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(RoundsFile, "write", stop)
        with pytest.raises(Stop):
            planned(*args, **options)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        ("synflow", {}), ("iter-snip", {}), ("force", {}), ("random", {}), ("magnitude", {"allocation": "erk"}),
        ("iter-snip", {"pattern": "v2", "layers": ["0", "2"]}), ("synflow", {"allocation": "uniform"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("after", [1, 4])
def test_the_plan_is_that_of_an_undisturbed_call(streamed, criterion, options, after, tmp_path, monkeypatch):
    expected = planned(network(streamed), criterion, **options)
    path = tmp_path / "rounds.safetensors"
    stopped_after(after, monkeypatch, network(streamed), criterion, path, **options)
    found = planned(network(streamed), criterion, path, seed=8, **options)  # the generator is brought to where it was
    assert all(found[name].same_as(expected[name]) for name in expected)
    assert not path.exists()


def test_rounds_of_flow_that_are_told_by_vectors_go_on_too(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_decision, "ROOM", 50)
    within = pollard.prune(network(), "magnitude", 0.8)
    for options in ({}, {"within": within}):
        expected, path = planned(network(), "synflow", **options), tmp_path / "rounds.safetensors"
        stopped_after(3, monkeypatch, network(streamed=True), "synflow", path, **options)
        found = planned(network(streamed=True), "synflow", path, **options)
        assert all(found[name].same_as(expected[name]) for name in expected)


def test_rounds_that_are_told_by_earlier_scores_begin_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_decision, "ROOM", 50)
    path = tmp_path / "rounds.safetensors"
    found = planned(network(streamed=True), "iter-snip", path)
    assert not path.exists()
    assert all(found[name].same_as(each) for name, each in planned(network(), "iter-snip").items())


def test_a_round_is_not_made_again(tmp_path, monkeypatch):
    path, made = tmp_path / "rounds.safetensors", []
    stopped_after(4, monkeypatch, network(), "iter-snip", path)
    write = RoundsFile.write
    monkeypatch.setattr(
        RoundsFile, "write", lambda self, finished, draw: made.append(finished.rounds) or write(self, finished, draw)
    )
    planned(network(), "iter-snip", path)
    assert made == [5]


@pytest.mark.parametrize(
    ("criterion", "seed", "options", "told"),
    [
        ("synflow", 0, {}, "criterion iter-snip"), ("iter-snip", 1, {}, "weights"), ("iter-snip", 0, {"invert": True}, "invert False"),
        ("iter-snip", 0, {"allocation": "erk"}, "allocation global"), ("iter-snip", 0, {"layers": ["0"]}, "layers"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
def test_rounds_of_another_decision_are_refused_and_kept(
    streamed, criterion, seed, options, told, tmp_path, monkeypatch
):
    path = tmp_path / "rounds.safetensors"
    stopped_after(2, monkeypatch, network(streamed), "iter-snip", path)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match=re.escape(told)):
        planned(network(streamed, seed), criterion, path, **options)
    assert path.read_bytes() == before


def test_one_round_and_a_damaged_file_are_refused(tmp_path):
    path = tmp_path / "rounds.safetensors"
    with pytest.raises(InvalidInput, match="one round"):
        pollard.prune(network(), "snip", 0.1, BATCH, rounds=Rounds(1, resume=path))
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(StoreError):
        planned(network(), "iter-snip", path)


def test_without_a_path_nothing_is_kept():
    file = RoundsFile(None, {})
    file.write(Finished(1, {}, {}), torch.Generator())
    file.remove()
    assert file.read(torch.Generator()) is None
