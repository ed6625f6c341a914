"""Training on a device goes as on the CPU: methods, optimizers, states, resumed runs. Nothing mixes devices.

Run by `test_devices` in a process of its own.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import pollard
from pollard.errors import InvalidInput, KernelFallback
from pollard.formats.topology import Topology
from pollard.kernels.code import once
from pollard.kernels.products.placed import indices_on, transpose_on
from pollard.nn import SparseLinear
from pollard.nn.readable import dense_weight
from pollard.streams import Stream
from pollard.training.methods import METHODS
from pollard.training.rounding import StochasticRounding
from tried import DEVICE, ON_CUDA, close, only_cuda, untuned

draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 16, generator=draw), torch.randint(8, (64,), generator=draw)
STEPS = 12
EVERY = {name: {} if name in {"static", "dsd"} else {"every": 3} for name in METHODS} | {
    "mest": {"every": 3, "margin": 0.1}
}
VARIANTS = [
    *((name, "unstructured", "compressed", {}) for name in METHODS),
    *((name, "unstructured", "masked", {}) for name in METHODS),
    ("rigl", "v4", "compressed", {}),
    ("rigl", "2:4", "compressed", {}),
    ("set", "b4x2", "compressed", {}),
    ("top-kast", "unstructured", "compressed", {"dense_memory": True}),
    ("top-kast", "unstructured", "masked", {"dense_memory": True}),
    ("snfs", "unstructured", "compressed", {"dense_memory": True}),
    ("gse", "v2", "compressed", {"guide": "graest"}),
    ("granet", "unstructured", "compressed", {"allocation": "erk"}),
]


pytestmark = untuned


# A pretended device adds as the CPU does; on another, no rounding of double precision comes between scores that differ.
DTYPE = torch.float64 if ON_CUDA else torch.float32


def network(device="cpu", dtype=DTYPE):
    torch.manual_seed(0)
    layers = nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8)
    return nn.Sequential(*layers).to(device, dtype)


def layers(model):
    return [model[place] for place in (0, 2, 4)]


def step(model, sparse):
    like = next(model.parameters())
    sparse.zero_grad()
    loss = F.cross_entropy(model(X.to(like)), Y.to(like.device))
    loss.backward()
    sparse.step()
    return loss.item()


def momentum(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def begun(method, device, pattern="unstructured", storage="compressed", options=None, made=momentum, dtype=DTYPE):
    model = network(device, dtype)
    optimizer = made(model.parameters())
    density = None if ":" in pattern else 0.3
    settings = {**EVERY[method], **(options or {})}
    sparse = pollard.sparse_training(
        model, optimizer, method, density=density, steps=STEPS, pattern=pattern, storage=storage, **settings
    )
    return model, sparse


@pytest.mark.parametrize(("method", "pattern", "storage", "options"), VARIANTS, ids=str)
def test_training_goes_as_on_the_cpu(method, pattern, storage, options):
    runs = []
    for device in ("cpu", DEVICE):
        model, sparse = begun(method, device, pattern, storage, options)
        losses = [step(model, sparse) for _ in range(STEPS)]
        assert {parameter.device for parameter in model.parameters()} == {torch.device(device)}
        runs.append((losses, [layer.topology for layer in layers(model)], sparse.updates))
    (losses, topologies, updates), (others, moved, theirs) = runs
    torch.testing.assert_close(losses, others, rtol=1e-4, atol=1e-5)
    assert updates == theirs
    assert all(one.same_as(other) for one, other in zip(topologies, moved, strict=True))


@only_cuda
@pytest.mark.parametrize(("method", "pattern", "storage", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_many_are_kept_in_less_precision(method, pattern, storage, options, dtype):
    runs = []
    for device in ("cpu", DEVICE):
        model, sparse = begun(method, device, pattern, storage, options, dtype=dtype)
        losses = [step(model, sparse) for _ in range(STEPS)]
        kept = [layer.topology.grains for layer in layers(model)]
        assert all(
            bool(layer(x).isfinite().all()) for layer, x in zip(layers(model)[:1], [X.to(device, dtype)], strict=True)
        )
        runs.append((losses, kept, sparse.updates))
    (losses, kept, updates), (others, theirs, moved) = runs
    assert updates == moved
    assert kept == theirs
    # Before anything moves all is the same but for rounding.
    near = 1e-4 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(losses[:2], others[:2], rtol=near, atol=near)


OPTIMIZERS = {
    "SGD": lambda p, **kind: torch.optim.SGD(p, 0.1, momentum=0.9, **kind),
    "Adam": lambda p, **kind: torch.optim.Adam(p, 0.01, **kind),
    "AdamW": lambda p, **kind: torch.optim.AdamW(p, 0.01, amsgrad=True, weight_decay=0.0, **kind),
}


@pytest.mark.parametrize("kind", ["foreach", "fused", "capturable"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["rigl", "gmp", "static"])
def test_optimizers_of_the_device(method, optimizer, kind):
    if optimizer == "SGD" and kind == "capturable":
        pytest.skip("it keeps nothing on the host")
    if not ON_CUDA and kind != "foreach":
        pytest.skip("torch has it for devices that it knows")
    losses = []
    for device in ("cpu", DEVICE):
        kinds = {kind: True} if device == DEVICE else {}
        model, sparse = begun(method, device, made=lambda p, kinds=kinds: OPTIMIZERS[optimizer](p, **kinds))
        losses.append([step(model, sparse) for _ in range(STEPS)])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_steps_of_their_own_are_counted_there():
    losses = []
    for device in ("cpu", DEVICE):
        model, sparse = begun("rigl", device, options={"own_steps": True}, made=lambda p: torch.optim.Adam(p, 0.01))
        losses.append([step(model, sparse) for _ in range(STEPS)])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_rounded_as_on_the_cpu():
    held = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(1)
        parameter = nn.Parameter(torch.randn(1000).bfloat16().to(device))
        optimizer = StochasticRounding(torch.optim.SGD([parameter], 1e-3), seed=3)
        for _ in range(3):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        held.append(parameter.detach().cpu())
    assert torch.equal(*held)


def test_an_average_follows_there():
    averages = []
    for device in ("cpu", DEVICE):
        model, sparse = begun("set", device)
        average = pollard.Averaged(model, decay=0.5)
        for _ in range(STEPS):
            step(model, sparse)
            average.update_parameters(model)
        averages.append(average(X.to(device, DTYPE)).detach())
    close(averages[1], averages[0])


def test_penalties_of_gradients():
    found = []
    for device in ("cpu", DEVICE):
        model, _ = begun("rigl", device)
        x = X.to(device, DTYPE, copy=True).requires_grad_()
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        slope.square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for here, there in zip(*found, strict=True):
        close(there, here)


@pytest.mark.parametrize("pattern", ["unstructured", "v4", "b4x2", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_goes_there_and_back(pattern, dtype):
    layer = SparseLinear.random(16, 8, 0.5, pattern).to(dtype)
    x = X[:5].to(dtype)
    expected = layer(x)
    expected.square().sum().backward()
    other = copy.deepcopy(layer).to(DEVICE)
    other.values.grad = None
    there = x.to(DEVICE).requires_grad_()
    y = other(there)
    assert y.device == DEVICE
    close(y, expected)
    y.square().sum().backward()
    close(other.values.grad, layer.values.grad)
    assert there.grad.device == DEVICE
    torch.testing.assert_close(dense_weight(other).cpu(), dense_weight(layer))
    back = other.cpu()
    assert torch.equal(back(x), expected)


@only_cuda
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_run_is_resumed_from_a_file_on_another_device(where, tmp_path):
    model, sparse = begun("rigl", DEVICE if where == "cpu" else "cpu", made=lambda p: torch.optim.Adam(p, 0.01))
    for _ in range(5):
        step(model, sparse)
    torch.save((model.state_dict(), sparse.state_dict()), tmp_path / "state.pt")
    expected = [step(model, sparse) for _ in range(5)]
    held = torch.load(tmp_path / "state.pt", map_location=where)
    other, again = begun("rigl", where, made=lambda p: torch.optim.Adam(p, 0.01))
    other.load_state_dict(held[0])
    again.load_state_dict(held[1])
    torch.testing.assert_close([step(other, again) for _ in range(5)], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("read_to", ["cpu", DEVICE], ids=["cpu", "device"])
def test_states_are_loaded_across_devices(read_to):
    model, sparse = begun("rigl", "cpu")
    for _ in range(5):
        step(model, sparse)
    held = copy.deepcopy((model.state_dict(), sparse.state_dict()))
    held = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(read_to), held)
    expected = [step(model, sparse) for _ in range(5)]
    other, again = begun("rigl", DEVICE)
    other.load_state_dict(held[0])
    again.load_state_dict(held[1])
    torch.testing.assert_close([step(other, again) for _ in range(5)], expected, rtol=1e-4, atol=1e-5)
    assert all(one.topology.same_as(two.topology) for one, two in zip(layers(model), layers(other), strict=True))
    there = pollard.load_sparse(network(DEVICE), other.state_dict())
    assert layers(there)[0].values.device == DEVICE
    x = X.to(DEVICE, DTYPE)
    torch.testing.assert_close(there(x), other(x))
    dense = pollard.densify_(there)
    assert dense[0].weight.device == DEVICE
    torch.testing.assert_close(dense(x), other(x))


def test_devices_do_not_mix():
    layer = SparseLinear.random(16, 8, 0.5)
    with pytest.raises(InvalidInput, match=rf"for an input on {DEVICE}.*\.to\(device\)"):
        layer(X.to(DEVICE))


@pytest.mark.skipif(ON_CUDA, reason="kernels of ours may run there")
def test_it_is_told_once_that_nothing_tuned_runs_there(monkeypatch):
    monkeypatch.setattr(once, "_told", set())
    layer = SparseLinear.random(16, 8, 0.5)
    warnings.simplefilter("always")
    with pytest.warns(KernelFallback, match="No kernel of Pollard's runs on 'pretended' yet"):
        layer.to(DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.cpu().to(DEVICE)(X.to(DEVICE))


def test_index_arrays_are_there_once():
    topology = Topology.random((8, 12), 0.4, "v2")
    for made, own in (
        (lambda: indices_on(topology, DEVICE), topology.indices),
        (lambda: vars_of(transpose_on(topology, DEVICE)), vars_of(topology.transpose())),
    ):
        there = made()
        assert all(array.device == DEVICE for array in there)
        assert all(torch.equal(array.cpu(), mine.int()) for array, mine in zip(there, own, strict=True))
        assert all(one is two for one, two in zip(there, made(), strict=True))
    assert indices_on(topology, torch.device("cpu")).row_pointers is topology.indices.row_pointers


@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_streams_have_the_same_numbers_there(law):
    stream, out = Stream(3, 4), torch.empty(5, 100, device=DEVICE)
    here = getattr(stream, law)(2, 7, 100)
    assert torch.equal(getattr(stream, law)(2, 7, 100, out=out).cpu(), here)
    places = torch.tensor([2, 6, 3])
    there = getattr(stream, f"{law}_at")(places.to(DEVICE), places.to(DEVICE))
    assert there.device == DEVICE
    assert torch.equal(there.cpu(), here[places - 2, places])


def vars_of(transpose):
    return transpose.row_pointers, transpose.groups, transpose.permutation
