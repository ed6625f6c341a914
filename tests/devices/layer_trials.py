"""Layers on a device compute what they do on the CPU, however they came there, and whatever is done with them there."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import pollard
from pollard.formats.store import load_tensors, save_tensors
from pollard.formats.topology import Topology
from pollard.nn import SparseLinear
from pollard.nn.readable import dense_weight
from tried import DEVICE, ON_CUDA, batch, close, plan_of, require_same, seeded, untuned

pytestmark = untuned
PATTERNS = ["unstructured", "v4", "v8", "b4x2", "2:4"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(5, 64), (1, 64), (3, 4, 64), (0, 64)], ids=str)
def test_a_layer(pattern, dtype, shape):
    layer = SparseLinear.random(64, 32, 0.5 if pattern == "2:4" else 0.3, pattern, generator=seeded()).to(dtype)
    require_same(layer, copy.deepcopy(layer).to(DEVICE), batch(*shape, dtype=dtype))


@pytest.mark.parametrize("strides", ["rows", "columns", "parts"])
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
def test_inputs_of_any_strides(pattern, strides):
    layer = SparseLinear.random(64, 32, 0.5 if pattern == "2:4" else 0.3, pattern, generator=seeded())
    there = copy.deepcopy(layer).to(DEVICE)
    whole = batch(64, 64)
    x = {"rows": whole, "columns": whole.t(), "parts": batch(64, 128)[::2, ::2]}[strides]
    moved = x.to(DEVICE)
    if strides == "parts":
        moved = batch(64, 128).to(DEVICE)[::2, ::2]
    close(there(moved), layer(x))
    close(there(there(moved)[:, :1].expand(-1, 64)), layer(layer(x)[:, :1].expand(-1, 64)))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_fused_activations(activation):
    layer = SparseLinear.random(64, 32, 0.3, activation=activation, generator=seeded())
    there = copy.deepcopy(layer).to(DEVICE)
    require_same(layer, there, batch(9, 64))
    with torch.no_grad():
        close(there(batch(9, 64).to(DEVICE)), layer(batch(9, 64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_inference_has_begun_goes_on_in_training(dtype):
    layer = SparseLinear.random(64, 32, 0.3, generator=seeded()).to(dtype)
    there, x = copy.deepcopy(layer).to(DEVICE), batch(9, 64, dtype=dtype)
    with torch.inference_mode():
        close(there(x.to(DEVICE)), layer(x))
    require_same(layer, there, x)


def test_nothing_is_kept_of_a_row():
    layer = SparseLinear(8, 4, Topology.from_positions((4, 8), "unstructured", torch.tensor([3, 17])))
    require_same(layer, copy.deepcopy(layer).to(DEVICE), batch(3, 8))
    empty = SparseLinear(8, 4, Topology.from_positions((4, 8), "unstructured", torch.empty(0, dtype=torch.int64)))
    require_same(empty, copy.deepcopy(empty).to(DEVICE), batch(3, 8))


# -- how a layer gets there


def made_there():
    drawn = SparseLinear.random(16, 8, 0.5, device=DEVICE, generator=seeded())
    return drawn, SparseLinear.random(16, 8, 0.5, generator=seeded())


def test_it_is_made_there():
    there, here = made_there()
    assert {each.device for each in there.state_dict(keep_vars=True).values() if each.requires_grad} == {DEVICE}
    close(there(batch(5, 16).to(DEVICE)).detach(), here(batch(5, 16)).detach())


def test_the_default_device_is_where_a_layer_is_made():
    with DEVICE:
        there, dense = SparseLinear.random(16, 8, 0.5, generator=seeded()), nn.Linear(8, 4)
    assert there.values.device == there.bias.device == dense.weight.device == DEVICE
    close(
        there(batch(5, 16).to(DEVICE)).detach(),
        SparseLinear.random(16, 8, 0.5, generator=seeded())(batch(5, 16)).detach(),
    )
    with torch.device("meta"):
        assert SparseLinear.random(16, 8, 0.5).values.is_meta
        assert SparseLinear.random(16, 8, 0.5, device="cpu").values.is_cpu


def test_a_default_device_changes_no_layer_that_is_elsewhere():
    here, there = nn.Sequential(nn.Linear(16, 8), nn.Tanh()), nn.Sequential(nn.Linear(16, 8), nn.Tanh()).to(DEVICE)
    with DEVICE:
        pollard.sparsify_(here, plan_of(here))
    with torch.device("cpu"):
        pollard.sparsify_(there, plan_of(there))
    assert here[0].values.is_cpu
    assert here[0].bias.is_cpu
    assert here(batch(5, 16)).is_cpu
    assert there(batch(5, 16).to(DEVICE)).device == DEVICE
    state = here.state_dict()
    with DEVICE:
        loaded = pollard.load_sparse(nn.Sequential(nn.Linear(16, 8, device="cpu"), nn.Tanh()), state)
    assert torch.equal(loaded(batch(5, 16)), here(batch(5, 16)))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
    with DEVICE:
        loaded = pollard.load_sparse(empty, state)
    assert torch.equal(loaded(batch(5, 16)), here(batch(5, 16)))


def test_a_whole_training_on_the_default_device():
    torch.set_default_device(DEVICE)
    try:
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        x, y = torch.randn(64, 16), torch.randint(4, (64,))
        sparse = pollard.rigl(model, torch.optim.Adam(model.parameters()), density=0.3, steps=8, every=2, batch=(x, y))
        for _ in range(8):
            sparse.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            sparse.step()
        assert sparse.updates > 1
        smaller = pollard.sparsify_(model, pollard.prune(model, "snip", 0.1, (x, y)))
        assert pollard.Coverage.of(smaller)
        held = smaller.state_dict()
        assert torch.equal(pollard.load_sparse(copy.deepcopy(model), held)(x), smaller(x))
        assert pollard.densify_(smaller)[0].weight.device == DEVICE
    finally:
        torch.set_default_device(None)


def test_it_comes_from_meta_and_from_a_file(tmp_path):
    model = pollard.sparsify_(dense := nn.Sequential(nn.Linear(16, 8), nn.Tanh()), plan_of(dense))
    expected = model(batch(5, 16))
    save_tensors(tmp_path / "model.safetensors", copy.deepcopy(model).to(DEVICE).state_dict(), {})
    held, _ = load_tensors(tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
    loaded = pollard.load_sparse(empty, held).to(DEVICE)
    close(loaded(batch(5, 16).to(DEVICE)).detach(), expected.detach())
    layer = copy.deepcopy(model).to("meta").to_empty(device=DEVICE)
    layer.load_state_dict(held)
    close(layer(batch(5, 16).to(DEVICE)).detach(), expected.detach())


def test_states_whose_arrays_are_there():
    made = [nn.Sequential(nn.Linear(16, 8), nn.Tanh()).to(DEVICE) for _ in range(2)]
    there, again = (pollard.sparsify_(each, plan_of(each)) for each in made)
    mapped = {name: tensor.to(DEVICE) for name, tensor in there.state_dict().items()}
    again.load_state_dict(mapped)
    x = batch(5, 16).to(DEVICE)
    assert torch.equal(again(x), there(x))
    loaded = pollard.load_sparse(nn.Sequential(nn.Linear(16, 8), nn.Tanh()), mapped)
    close(there(x).detach(), loaded(batch(5, 16)).detach())


def test_a_model_never_dense_comes_there():
    with pollard.never_dense(seed=3):
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8))
    with pytest.raises(pollard.errors.InvalidInput, match="only as a stream"):
        copy.deepcopy(model).to(DEVICE)
    pollard.sparsify_(model, pollard.prune(model, "snip", 0.2, (batch(32, 64), torch.arange(32) % 8)))
    require_same(model, copy.deepcopy(model).to(DEVICE), batch(5, 64))


def test_it_goes_there_and_back_without_waiting():
    layer = SparseLinear.random(16, 8, 0.5, generator=seeded())
    expected = layer(batch(5, 16))
    there = layer.to(DEVICE, non_blocking=True)
    close(there(batch(5, 16).to(DEVICE, non_blocking=True)).detach(), expected.detach())
    assert torch.equal(there.to("cpu", non_blocking=True)(batch(5, 16)), expected)


def test_copies():
    there, _ = made_there()
    x = batch(5, 16).to(DEVICE)
    expected = there(x)
    assert torch.equal(copy.deepcopy(there)(x), expected)
    buffer = io.BytesIO()
    if ON_CUDA:  # a pretended tensor is of a class of its own, which holds another
        torch.save(there, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
        buffer.seek(0)
        here = torch.load(buffer, weights_only=False, map_location="cpu")
        close(expected.detach(), here(batch(5, 16)).detach())


# -- what is written on a layer there


def test_values_that_are_moved_and_read_there():
    layer = SparseLinear.random(16, 8, 0.5, generator=seeded())
    there = copy.deepcopy(layer).to(DEVICE)
    close(dense_weight(there).detach(), dense_weight(layer).detach())
    if ON_CUDA:  # a weight to read is of a class of its own, and so is a pretended tensor
        close(there.weight.to_dense().detach(), layer.weight.to_dense().detach())
    close(there.to_dense().weight.detach(), layer.to_dense().weight.detach())
    smaller = Topology.from_positions((8, 16), "unstructured", layer.topology.positions()[::2])
    there.shrink_(smaller)
    layer.shrink_(smaller)
    require_same(layer, there, batch(5, 16))
    there.reset_parameters()
    assert there.values.device == DEVICE
    csr = pollard.SparseMatrix(there.values.detach(), there.topology)
    back = pollard.SparseMatrix.from_torch(csr.to_torch_coo()) if ON_CUDA else csr
    assert back.topology.same_as(there.topology)


def test_a_norm_is_folded_there():
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8)).to(DEVICE)
    model(batch(64, 16).to(DEVICE))
    pollard.sparsify_(model, plan_of(model)).eval()
    expected = model(batch(5, 16).to(DEVICE)).detach()
    pollard.fold_norms_(model)
    torch.testing.assert_close(model(batch(5, 16).to(DEVICE)).detach(), expected)
