"""Methods on blocks and N of every M: as exact as on single weights, the same on both storages, saved and loaded by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pollard
from pollard.errors import PatternError
from pollard.formats.topology import Topology
from pollard.nn import SparseLinear
from pollard.training.methods import METHODS

draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(96, 16, generator=draw), torch.randint(8, (96,), generator=draw)
STEPS = 20
WITHIN_RUNS = ("static", "set", "rigl", "snfs", "mest")
EVERY = {name: {} if name in {"static", "dsd"} else {"every": 4} for name in METHODS} | {
    "mest": {"every": 4, "margin": 0.1}
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 16))


def layers(model):
    return [model[place] for place in (0, 2, 4)]


def step(model, sparse):
    sparse.zero_grad()
    loss = F.cross_entropy(model(X), Y)
    loss.backward()
    sparse.step()
    return loss.item()


def trained(method, pattern, storage, density=0.3):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    density = None if ":" in pattern else density
    sparse = pollard.sparse_training(
        model, optimizer, method, density=density, steps=STEPS, pattern=pattern, storage=storage, **EVERY[method]
    )
    losses, topologies = [], []
    for _ in range(STEPS):
        losses.append(step(model, sparse))
        topologies.append([layer.topology for layer in layers(model)])
    return losses, topologies, sparse


@pytest.mark.parametrize("pattern", ["b4x2", "b16x2", "2:4", "1:4"])
@pytest.mark.parametrize("method", METHODS)
def test_both_storages_go_the_same_way_and_keep_the_pattern(method, pattern):
    if method == "srigl" or (":" in pattern and method not in WITHIN_RUNS):
        with pytest.raises(PatternError, match=rf"pattern {pattern}.*(Choose another|Leave) pattern="):
            trained(method, pattern, "compressed")
        return
    losses, topologies, sparse = trained(method, pattern, "compressed")
    masked, expected, _ = trained(method, pattern, "masked")
    torch.testing.assert_close(losses, masked, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(topologies, expected, strict=True):
        for topology, other in zip(ours, theirs, strict=True):
            assert topology.same_as(other)
            assert str(topology.pattern) == pattern
            assert Topology.from_mask(topology.mask(), pattern).same_as(topology)
    moved = not all(one.same_as(other) for one, other in zip(topologies[0], topologies[-1], strict=True))
    assert moved == (sparse.updates > 0) or method == "dsd"


def test_rigl_exchanges_within_every_m():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = pollard.rigl(model, optimizer, steps=STEPS, pattern="2:4", every=3, fraction=0.4)
    for _ in range(2):
        step(model, sparse)
    before = [(layer.topology, layer.values.detach().clone()) for layer in layers(model)]
    inputs, outputs = [], []

    def watch(layer, given, output):
        inputs.append(given[0].detach())
        output.register_hook(lambda gradient: outputs.insert(0, gradient))

    handles = [layer.register_forward_hook(watch) for layer in layers(model)]
    step(model, sparse)
    for handle in handles:
        handle.remove()
    assert sparse.updates == 1
    for layer, (topology, values), x, dy in zip(layers(model), before, inputs, outputs, strict=True):
        gradient = (dy.T @ x).abs()
        weight = pollard.SparseMatrix(values, topology).to_dense()
        fraction = sparse.method.fraction(3)
        order = values.abs().argsort(descending=True, stable=True)
        stays = torch.zeros(len(values), dtype=torch.bool)
        stays[order[: topology.grains - round(fraction * topology.grains)]] = True
        held = torch.zeros(topology.shape, dtype=torch.bool)
        held.view(-1)[topology.weight_positions()[stays]] = True
        expected = held.clone()
        for row in range(topology.shape[0]):
            for start in range(0, topology.shape[1], 4):
                run = slice(start, start + 4)
                scores = gradient[row, run].masked_fill(held[row, run], -1.0)
                missing = 2 - int(held[row, run].sum())
                expected[row, start + scores.argsort(descending=True)[:missing]] = True
        assert torch.equal(layer.topology.mask(), expected)
        after = pollard.SparseMatrix(layer.values.detach(), layer.topology).to_dense()
        both = topology.mask() & expected
        assert torch.equal(after[both], weight[both])
        assert not after[expected & ~topology.mask()].any()


def test_set_grows_within_every_m_each_as_likely():
    counts = torch.zeros(4)
    for seed in range(300):
        model = nn.Sequential(nn.Linear(8, 8, bias=False))
        kept = Topology.from_mask(torch.tensor([True, True, False, False]).repeat(8, 2), "2:4")
        model[0] = SparseLinear.from_dense(model[0], kept)
        with torch.no_grad():
            model[0].values.view(-1, 2)[:, 0] = 1.0  # the first of every four is never the one to go
            model[0].values.view(-1, 2)[:, 1] = 0.1
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        sparse = pollard.set_(model, optimizer, steps=10, every=1, fraction=0.5, signed=False, seed=seed)
        model(torch.ones(2, 8)).sum().backward()
        sparse.step()
        counts += model[0].topology.mask().view(-1, 4).sum(0)
    assert counts[0] == 300 * 16
    # What was dropped may come back: each of three in a third of all.
    expected = 300 * 16 / 3
    assert (counts[1:] - expected).abs().max() < 5 * (expected * 2 / 3) ** 0.5


@pytest.mark.parametrize("pattern", ["2:4", "b16x2"])
@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_a_plan_by_snip_is_saved_loaded_and_trained(pattern, storage, tmp_path):
    density = None if ":" in pattern else 0.3
    plan = pollard.prune(network(), "snip", density, (X, Y), pattern=pattern, min_density=0.1)
    plan.save(tmp_path / "plan.safetensors")
    loaded = pollard.Plan.load(tmp_path / "plan.safetensors")
    assert all(loaded[name].same_as(plan[name]) for name in plan)
    assert {str(topology.pattern) for topology in loaded.values()} == {pattern}
    model = pollard.sparsify_(network(), loaded, storage=storage)
    sparse = pollard.rigl(model, torch.optim.Adam(model.parameters(), 0.01), steps=STEPS, every=4)
    losses = [step(model, sparse) for _ in range(STEPS)]
    assert losses[-1] < losses[0]
    if storage == "masked":
        return
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = pollard.load_sparse(network(), tmp_path / "model.pt")
    assert torch.equal(again(X), model(X))
    assert {str(layer.pattern) for layer in layers(again)} == {pattern}
    torch.testing.assert_close(pollard.densify_(copy.deepcopy(model))(X), model(X))


@pytest.mark.parametrize("pattern", ["2:4", "b4x2"])
def test_a_stopped_run_goes_on_to_the_same_bits(pattern):
    def begin():
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        density = None if ":" in pattern else 0.3
        return model, pollard.rigl(model, optimizer, density=density, steps=STEPS, pattern=pattern, every=4)

    model, sparse = begin()
    for _ in range(9):
        step(model, sparse)
    held = copy.deepcopy((model.state_dict(), sparse.state_dict()))
    expected = [step(model, sparse) for _ in range(8)]
    other, again = begin()
    other.load_state_dict(held[0])
    again.load_state_dict(held[1])
    assert [step(other, again) for _ in range(8)] == expected
    assert all(torch.equal(one, two) for one, two in zip(other.parameters(), model.parameters(), strict=True))


def test_a_state_of_another_pattern_is_loaded_by_its_name():
    blocks = SparseLinear.random(16, 16, 0.25, "b4x4")
    other = SparseLinear.random(16, 16, 0.5, "2:4")
    other.load_state_dict(blocks.state_dict())
    assert str(other.pattern) == "b4x4"
    assert torch.equal(other(X), blocks(X))
    state = blocks.state_dict()
    state["pattern"] = torch.tensor(list(b"x4"), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="pattern 'x4'"):
        other.load_state_dict(state)
    state["pattern"] = torch.tensor(list(b"b4x2"), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"values of shape \(64,\)"):
        other.load_state_dict(state)
    assert torch.equal(other(X), blocks(X))


@pytest.mark.parametrize("pattern", ["2:4", "b4x2"])
def test_what_is_compiled_exported_and_differentiated_twice(pattern):
    layer = SparseLinear.random(16, 16, 0.5, pattern)
    x = X[:3].clone().requires_grad_()
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    double = layer.double()
    assert torch.autograd.gradgradcheck(
        lambda x, w: torch.func.functional_call(double, {"values": w}, (x,)).square(),
        (x.detach().double().requires_grad_(), double.values),
    )
