"""On a device without kernels of ours all is as on the CPU: products, methods, states, resumed runs. Nothing mixes devices.

Run by `test_devices` in a process of its own.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pollard
from pollard.errors import InvalidInput, KernelFallback
from pollard.formats.topology import Topology
from pollard.kernels.code import once
from pollard.kernels.products.placed import indices_on, transpose_on
from pollard.nn import SparseLinear
from pollard.nn.readable import dense_weight
from pollard.streams import Stream
from pollard.training.methods import METHODS
from pretended import DEVICE

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


pytestmark = pytest.mark.filterwarnings(
    "ignore:No kernel of Pollard's runs on 'pretended':pollard.errors.KernelFallback"
)


def network(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8)).to(device)


def layers(model):
    return [model[place] for place in (0, 2, 4)]


def step(model, sparse):
    device = next(model.parameters()).device
    sparse.zero_grad()
    loss = F.cross_entropy(model(X.to(device)), Y.to(device))
    loss.backward()
    sparse.step()
    return loss.item()


def begun(method, device, pattern="unstructured", storage="compressed", options=None):
    model = network(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    density = None if ":" in pattern else 0.3
    settings = {**EVERY[method], **(options or {})}
    sparse = pollard.sparse_training(
        model, optimizer, method, density=density, steps=STEPS, pattern=pattern, storage=storage, **settings
    )
    return model, sparse


@pytest.mark.parametrize(("method", "pattern", "storage", "options"), VARIANTS, ids=str)
def test_training_goes_as_on_the_cpu(method, pattern, storage, options):
    runs = {}
    for device in ("cpu", DEVICE):
        model, sparse = begun(method, device, pattern, storage, options)
        losses = [step(model, sparse) for _ in range(STEPS)]
        assert {parameter.device for parameter in model.parameters()} == {torch.device(device)}
        runs[str(device)] = losses, [layer.topology for layer in layers(model)], sparse.updates
    (losses, topologies, updates), (others, moved, theirs) = runs.values()
    torch.testing.assert_close(losses, others, rtol=1e-4, atol=1e-5)
    assert updates == theirs
    assert all(one.same_as(other) for one, other in zip(topologies, moved, strict=True))


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
    torch.testing.assert_close(y.cpu(), expected)
    y.square().sum().backward()
    torch.testing.assert_close(
        other.values.grad.cpu(),
        layer.values.grad,
        rtol=2e-2 if dtype is torch.bfloat16 else None,
        atol=1e-2 if dtype is torch.bfloat16 else None,
    )
    assert there.grad.device == DEVICE
    torch.testing.assert_close(dense_weight(other).cpu(), dense_weight(layer))
    back = other.cpu()
    assert torch.equal(back(x), expected)


def test_states_are_loaded_across_devices(tmp_path):
    model, sparse = begun("rigl", "cpu")
    for _ in range(5):
        step(model, sparse)
    held = copy.deepcopy((model.state_dict(), sparse.state_dict()))
    expected = [step(model, sparse) for _ in range(5)]
    other, again = begun("rigl", DEVICE)
    other.load_state_dict(held[0])
    again.load_state_dict(held[1])
    torch.testing.assert_close([step(other, again) for _ in range(5)], expected, rtol=1e-4, atol=1e-5)
    assert all(one.topology.same_as(two.topology) for one, two in zip(layers(model), layers(other), strict=True))
    there = pollard.load_sparse(network(DEVICE), other.state_dict())
    assert layers(there)[0].values.device == DEVICE
    torch.testing.assert_close(there(X.to(DEVICE)), other(X.to(DEVICE)))
    dense = pollard.densify_(there)
    assert dense[0].weight.device == DEVICE
    torch.testing.assert_close(dense(X.to(DEVICE)), other(X.to(DEVICE)))


@pytest.mark.parametrize(
    "criterion", ["snip", "grasp", "synflow", "wanda", "sparsegpt", "exact-obs", "woodfisher", "magnitude"]
)
def test_a_plan_is_that_of_the_cpu(criterion):
    plans = []
    for device in ("cpu", DEVICE):
        model = network(device)
        plan = pollard.prune(model, criterion, 0.3, (X.to(device), Y.to(device)))
        y = pollard.sparsify_(model, plan)(X.to(device)).cpu()
        plans.append((plan, y))
    (here, y), (there, other) = plans
    agree = sum(int((here.mask(name) & there.mask(name)).sum()) for name in here)
    assert agree > 0.98 * here.nnz
    if agree == here.nnz:
        torch.testing.assert_close(y, other, rtol=1e-3, atol=1e-4)


def test_devices_do_not_mix():
    layer = SparseLinear.random(16, 8, 0.5)
    with pytest.raises(InvalidInput, match=r"for an input on pretended:0.*\.to\(device\)"):
        layer(X.to(DEVICE))


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
