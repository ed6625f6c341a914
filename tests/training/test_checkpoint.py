"""Checkpoints hold everything, and refuse what they are not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pollard.errors import StoreError
from pollard.formats.store import save_tensors
from pollard.training import Checkpoint, TrainingOptions, make_optimizer
from pollard.training.checkpoint import flatten, unflatten

SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TREE = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(TREE)
def test_trees_of_scalars_come_back_as_they_were(tree):
    flat = flatten(tree, {}, "tree")
    back = unflatten(flat, {})
    assert back == tree
    assert repr(back) == repr(tree)


def trained_pair(name):
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainingOptions(optimizer=name))
    for _ in range(2):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def checkpoint_of(model, steps, **changed):
    told = {
        "identity": "this run",
        "step": 7,
        "model": model.state_dict(),
        "optimizer": steps.state_dict(),
        "noise": torch.get_rng_state(),
        "seconds": torch.tensor([0.25, 0.5]),
        "loss_sum": 0.1 + 0.2,
        "metrics_bytes": 12,
        "record": {"epoch": 1, "test_loss": 1 / 3},
    }
    return Checkpoint(**(told | changed))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_model_and_optimizer_go_on_bit_for_bit(tmp_path, name):
    model, optimizer = trained_pair(name)
    saved = checkpoint_of(model, optimizer)
    saved.save(tmp_path / "checkpoint")
    loaded = Checkpoint.load(tmp_path / "checkpoint", "this run")
    assert (loaded.step, loaded.loss_sum, loaded.metrics_bytes, loaded.record) == (7, 0.1 + 0.2, 12, saved.record)
    assert torch.equal(loaded.noise, saved.noise)
    other = nn.Linear(3, 2)
    twin = make_optimizer(other, TrainingOptions(optimizer=name))
    loaded.restore(other, twin)
    x = torch.randn(4, 3)
    for network, steps in ((model, optimizer), (other, twin)):
        steps.zero_grad()
        network(x).square().sum().backward()
        steps.step()
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_another_runs_checkpoint_is_refused(tmp_path):
    checkpoint_of(*trained_pair("sgd")).save(tmp_path / "checkpoint")
    with pytest.raises(StoreError, match="of run this run; expected run that run"):
        Checkpoint.load(tmp_path / "checkpoint", "that run")


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    save_tensors(path, {"weight": torch.ones(2)}, {})
    with pytest.raises(StoreError, match="checkpoint"):
        Checkpoint.load(path, "this run")
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(StoreError):
        Checkpoint.load(path, "this run")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "checkpoint"
    checkpoint_of(*trained_pair("adam")).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(StoreError):
        Checkpoint.load(path, "this run")


def test_another_models_checkpoint_is_refused(tmp_path):
    model, optimizer = trained_pair("sgd")
    saved = checkpoint_of(model, optimizer)
    other = nn.Linear(5, 2)
    with pytest.raises(StoreError, match="does not fit"):
        saved.restore(other, make_optimizer(other, TrainingOptions()))


def test_state_that_is_no_data_is_refused(tmp_path):
    model, optimizer = trained_pair("sgd")
    with pytest.raises(StoreError, match="a function"):
        checkpoint_of(model, optimizer, optimizer={"hook": lambda: None}).save(tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []
