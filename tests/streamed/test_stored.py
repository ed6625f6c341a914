"""Weights whose numbers lie in files: what is read, what stays in the file, and what is refused before anything changes."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pollard
from checkpoints import network, same, saved
from pollard.errors import InvalidInput, StoreError
from pollard.formats.entries import entries
from pollard.streamed import source
from pollard.streamed.stored import Stored
from pollard.streamed.tensor import StreamedTensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True, params=[1 << 21, 1])
def room(request, monkeypatch):
    """Weights that fit a block, and such that take many."""
    monkeypatch.setattr(source, "ROOM", request.param)


def born(dtype=torch.float32):
    with pollard.never_dense(1):
        return network(dtype)


def numbers(model):
    return {
        name: each.to_dense() if isinstance(each, StreamedTensor) else each.clone()
        for name, each in model.state_dict().items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_places_are_those_of_the_tensor(tmp_path, dtype):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(130, 3, 5, generator=draw).to(dtype)
    save_file({"a": torch.ones(7), "w": weight, "z": torch.ones(3, dtype=torch.float64)}, tmp_path / "w.safetensors")
    stored = Stored(entries(tmp_path / "w.safetensors")["w"], dtype)
    flat = weight.flatten(1)
    assert stored.shape == (130, 15)
    for first, last in [(0, 130), (7, 8), (33, 129), (5, 5)]:
        assert torch.equal(stored.rows(first, last), flat[first:last])
    rows, columns = torch.randint(130, (400,), generator=draw), torch.randint(15, (400,), generator=draw)
    assert torch.equal(stored.at(rows, columns), flat[rows, columns])
    assert stored.at(rows[:0], columns[:0]).shape == (0,)
    assert torch.equal(source.Part((30, 15), dtype, stored, 100).at(rows % 30, columns), flat[100:][rows % 30, columns])


def test_places_are_read_front_to_back_and_no_further_than_needed(tmp_path):
    save_file({"w": torch.randn(2048, 16)}, tmp_path / "w.safetensors")
    seen = []
    stored = Stored(entries(tmp_path / "w.safetensors")["w"], torch.float32, seen.append)
    stored.at(torch.tensor([900, 7, 905, 8]), torch.tensor([0, 1, 2, 3]))
    assert sum(seen) <= 900 * 64
    assert len(seen) == len(list(source.by_block((2048, 16), torch.tensor([900, 7, 905, 8]))))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_takes_the_state_and_its_weights_stay_in_the_file(tmp_path, shards, dtype):
    dense, model = network(dtype), born(dtype)
    path = saved(dense, tmp_path, shards)
    before = {name: id(each) for name, each in model.named_parameters()}
    assert pollard.load_streamed_(model, path) is model
    assert before == {name: id(each) for name, each in model.named_parameters()}
    assert sum(isinstance(each, StreamedTensor) for each in model.parameters()) == 5
    state = numbers(model)
    for name, tensor in dense.state_dict().items():
        assert torch.equal(state[name], tensor), name
    same(pollard.densify_(model), dense)


def test_numbers_become_those_of_the_model_s_dtype(tmp_path):
    model = born()
    pollard.load_streamed_(model, saved(network(torch.bfloat16), tmp_path))
    expected = network()
    expected.load_state_dict(load_file(tmp_path / "dense.safetensors"))
    same(pollard.densify_(model), expected)


@pytest.mark.parametrize("criterion", ["magnitude", "random", "snip"])
def test_what_is_kept_is_what_the_dense_model_keeps(tmp_path, criterion):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = network()

        def forward(self, x):
            return self.parts["head"](self.parts["body"](x))

    def kept(model):
        draw = torch.Generator().manual_seed(3)
        batch = torch.randn(8, 16, generator=draw), torch.randint(12, (8,), generator=draw)
        given = {} if criterion == "magnitude" else {"batch": batch}
        only = ["parts.body", "parts.head"]
        plan = pollard.prune(model, criterion, 0.2, layers=only, generator=draw, **given)
        return pollard.sparsify_(model, plan)

    dense = Net()
    with pollard.never_dense(2):
        model = Net()
    pollard.load_streamed_(model, saved(dense, tmp_path))
    same(pollard.densify_(kept(model)), pollard.densify_(kept(dense)))


def test_copies_pickles_and_conversions_read_the_same_file(tmp_path):
    dense, model = network(), born()
    pollard.load_streamed_(model, saved(dense, tmp_path))
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(pollard.densify_(each), dense)
    same(pollard.densify_(copy.deepcopy(model).to(torch.bfloat16)), dense.to(torch.bfloat16))


def test_a_prefix_is_left_out_and_so_is_what_has_another(tmp_path):
    dense, model = network(), born()
    state = {f"net.{name}": tensor for name, tensor in dense.state_dict().items()} | {"loss.weight": torch.ones(2)}
    save_file(state, tmp_path / "d.safetensors")
    with pytest.raises(InvalidInput, match="prefix="):
        pollard.load_streamed_(model, tmp_path / "d.safetensors")
    same(pollard.densify_(pollard.load_streamed_(model, tmp_path / "d.safetensors", prefix="net.")), dense)


def test_a_weight_of_two_names_needs_one(tmp_path):
    def tied():
        model = network()
        model["head"].bias = model["line"].bias = nn.Parameter(torch.randn(8))
        model["head"].weight = model["body"][2].weight
        return model

    dense = tied()
    state = dense.state_dict()
    del state["head.weight"], state["head.bias"]
    save_file(state, tmp_path / "d.safetensors")
    with pollard.never_dense(1):
        model = tied()
    pollard.load_streamed_(model, tmp_path / "d.safetensors")
    assert model["head"].weight is model["body"][2].weight
    assert torch.equal(model["head"].weight.to_dense(), dense["head"].weight)
    assert torch.equal(model["head"].bias, dense["head"].bias)


MISFITS = {
    "without 'head.weight'": lambda state: state.pop("head.weight"),
    "without 'norm.running_mean'": lambda state: state.pop("norm.running_mean"),
    "has not: 'tail.weight'": lambda state: state.update({"tail.weight": torch.ones(2)}),
    "other shapes: 'body.0.weight (95, 16) for (96, 16)'": lambda state: state.update({"body.0.weight": torch.ones(95, 16)}),
    "other shapes: 'norm.running_var (4,) for (40,)'": lambda state: state.update({"norm.running_var": torch.ones(4)}),
    "whole numbers for 'body.0.weight'": lambda state: state.update({"body.0.weight": torch.ones(96, 16).int()}),
}  # fmt: skip


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_refused_and_nothing_has_changed(tmp_path, misfit):
    state = network().state_dict()
    MISFITS[misfit](state)
    save_file(state, tmp_path / "d.safetensors")
    model = born()
    before = numbers(model)
    with pytest.raises(InvalidInput) as refused:
        pollard.load_streamed_(model, tmp_path / "d.safetensors")
    assert misfit in refused.value.got
    assert all(torch.equal(each, before[name]) for name, each in numbers(model).items())


def test_norms_of_earlier_torch_had_no_counter(tmp_path):
    state = network().state_dict()
    del state["norm.num_batches_tracked"]
    save_file(state, tmp_path / "d.safetensors")
    same(pollard.densify_(pollard.load_streamed_(born(), tmp_path / "d.safetensors")), network())


def test_a_model_with_memory_is_told_what_loads_it(tmp_path):
    with pytest.raises(InvalidInput, match="load_state_dict"):
        pollard.load_streamed_(network(), saved(network(), tmp_path))


def test_a_pickle_is_refused_and_told_how_to_become_safetensors(tmp_path):
    torch.save(network().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(StoreError, match=r"safetensors\.torch\.save_file"):
        pollard.load_streamed_(born(), tmp_path)


def test_a_layer_that_is_sparse_already_takes_its_own_entries(tmp_path):
    def partly(model):
        kept = pollard.Topology.random((12, 40), 0.3, generator=torch.Generator().manual_seed(4))
        return pollard.sparsify_(model, {"head": kept})

    dense = partly(network())
    model = partly(born())
    pollard.load_streamed_(model, saved(dense, tmp_path))
    same(pollard.densify_(model), pollard.densify_(dense))


CHANGES = {
    "vanished": Path.unlink,
    "shrank": lambda path: os.truncate(path, path.stat().st_size - 8),
    "was written to": lambda path: os.utime(path, ns=(1, 1)),
    "became another": lambda path: saved(network(torch.float64), path.parent),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_has_changed_since_is_refused(tmp_path, change):
    model = born()
    path = saved(network(), tmp_path)
    pollard.load_streamed_(model, path)
    model["head"].weight.block(0, 12)
    CHANGES[change](path)
    for ask in (lambda: model["head"].weight.block(0, 12), lambda: pollard.prune(model, "magnitude", 0.5)):
        with pytest.raises(StoreError, match=r"dense\.safetensors"):
            ask()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_no_file_is_held_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    model = pollard.load_streamed_(born(), saved(network(), tmp_path, shards=3))
    pollard.prune(model, "magnitude", 0.5)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
