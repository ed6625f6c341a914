"""What grows by gradient is what a dense gradient and a full sort would choose, index for index."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.training import passes
from pollard.training.methods import METHODS, grow
from pollard.training.methods.change import Change
from pollard.training.sparsifier import Sparsifier
from pollard.training.weights import CompressedWeight, MaskedWeight

SHAPE = (48, 20)


def integers(*shape, seed):
    """Few distinct whole numbers: sums of products are exact in float32, and full of ties."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def weight_of(pattern="unstructured", storage="compressed", density=0.3):
    draw = torch.Generator().manual_seed(3)
    rows = Topology.full(SHAPE, pattern).pattern.rows
    grains = torch.rand(SHAPE[0] // rows, SHAPE[1], generator=draw) < density
    topology = Topology.from_mask(grains.repeat_interleave(rows, 0), pattern)
    dense = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    if storage == "masked":
        layer = MaskedLinear(dense.weight, topology)
        return MaskedWeight("layer", layer, torch.optim.SGD(layer.parameters(), 0.1))
    layer = SparseLinear.from_dense(dense, topology)
    return CompressedWeight("layer", layer, torch.optim.SGD(layer.parameters(), 0.1))


def passed(weight, *sizes):
    """Send examples of these sizes through the layer; the gradient of its dense weight."""
    weight.passes.watch(1)
    total = torch.zeros(SHAPE)
    for seed, size in enumerate(sizes):
        x, dy = integers(*size, SHAPE[1], seed=seed), integers(*size, SHAPE[0], seed=seed + 10)
        weight.layer(x.requires_grad_()).backward(dy)
        total += dy.reshape(-1, SHAPE[0]).T @ x.detach().reshape(-1, SHAPE[1])
    return total


def first_by(scores, count):
    return scores.flatten().argsort(descending=True, stable=True)[:count].sort().values


def expected(weight, gradient, stays, count):
    scores = gradient.abs().view(-1, weight.size, SHAPE[1]).sum(1).flatten()
    scores[weight.topology.positions(stays)] = -1
    return first_by(scores, count)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("pattern", ["unstructured", "v4", "v16"])
@pytest.mark.parametrize("sizes", [[(30,)], [(2, 3, 5)], [(7,), (4, 3), (1,)]], ids=str)
@pytest.mark.parametrize("block", [1, 50, 333, 1 << 19])
@pytest.mark.parametrize("sample", [(32, 8), (2, 2), (1, 3)], ids=str)
def test_the_streamed_choice_is_that_of_the_dense_gradient(monkeypatch, storage, pattern, sizes, block, sample):
    monkeypatch.setattr(passes, "BLOCK", block)
    for name, number in zip(("SHARE", "PLACES"), sample, strict=True):
        monkeypatch.setattr(grow, name, number)
    weight = weight_of(pattern, storage)
    gradient = passed(weight, *sizes)
    stays = torch.arange(weight.topology.grains) % 2 == 0
    keep = int(stays.sum())
    for count in (0, 1, weight.topology.grains // 2, weight.topology.groups * SHAPE[1] - keep):
        change = Change(weight, keep, keep + count, 0.5, torch.Generator())
        assert torch.equal(grow.by_gradient(change, stays, count), expected(weight, gradient, stays, count))


@pytest.mark.parametrize("misled", [False, True])
def test_a_few_rows_say_where_to_look_and_may_be_wrong(monkeypatch, misled):
    weight = weight_of()
    monkeypatch.setattr(passes, "BLOCK", 100)
    monkeypatch.setattr(grow, "SHARE", 8)
    monkeypatch.setattr(grow, "PLACES", 2)
    bounds, above = [], grow._above
    monkeypatch.setattr(grow, "_above", lambda *asked: bounds.append(asked[-1]) or above(*asked))
    draw = torch.Generator().manual_seed(5)
    x, dy = torch.randn(30, 20, generator=draw).requires_grad_(), torch.randn(30, 48, generator=draw)
    if misled:
        dy[:, :3] *= 100
        dy[:, 24:27] *= 100
    weight.passes.watch(1)
    weight.layer(x).backward(dy)
    stays = torch.ones(weight.topology.grains, dtype=torch.bool)
    change = Change(weight, len(stays), len(stays) + 200, 0.5, torch.Generator())
    chosen = grow.by_gradient(change, stays, 200)
    assert torch.equal(chosen, expected(weight, dy.T @ x.detach(), stays, 200))
    assert bounds[0] > 0.0
    assert bounds[1:] == ([grow.EXCLUDED] if misled else [])


def test_any_row_block_is_a_part_of_the_dense_gradient():
    weight = weight_of()
    gradient = passed(weight, (9,), (3, 2))
    assert torch.equal(weight.passes.rows(0, 48), gradient)
    assert torch.equal(weight.passes.rows(5, 17), gradient[5:17])
    assert torch.equal(weight.passes.at(weight.topology), gradient[weight.topology.mask()])


def test_a_fused_relu_passes_no_gradient_where_it_cut_off():
    weight = weight_of()
    weight.layer.activation = "relu"
    weight.passes.watch(1)
    x, dy = integers(30, 20, seed=1), integers(30, 48, seed=2)
    output = weight.layer(x)
    output.backward(dy)
    assert torch.equal(weight.passes.rows(0, 48), dy.masked_fill(output <= 0, 0.0).T @ x)


def test_what_a_fused_gelu_keeps_back_is_refused():
    weight = weight_of()
    weight.layer.activation = "gelu"
    weight.passes.watch(1)
    with pytest.raises(InvalidInput, match="activation='gelu'"):
        weight.layer(integers(30, 20, seed=1))


def test_half_precision_passes_are_summed_in_single():
    weight = weight_of()
    weight.passes.watch(1)
    x = torch.randn(300, 20).bfloat16()
    weight.passes.seen = [passes.Pass(1, x, torch.randn(300, 48))]
    (_, _, dy), rows = weight.passes.seen[0], weight.passes.rows(0, 48)
    torch.testing.assert_close(rows, dy.T @ x.float())


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 6)).to(dtype)


def examples(seed=1, count=64):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=draw, dtype=torch.float64)
    return x, (x @ torch.randn(12, 6, generator=draw, dtype=torch.float64)).argmax(1)


def dense_gradients(model, x, y):
    first, last = model[0].to_dense(), model[2].to_dense()
    loss = nn.functional.cross_entropy(last(first(x).relu()), y)
    return dict(zip("02", torch.autograd.grad(loss, [first.weight, last.weight]), strict=True))


@pytest.mark.parametrize("name", ["rigl", "granet"])
def test_each_update_is_the_published_one(name):
    model, (x, y) = network(), examples()
    optimizer = torch.optim.SGD(model.parameters(), 0.0 if name == "granet" else 0.1)
    options = {"allocation": "uniform", "start_density": 0.3} if name == "granet" else {}
    sparse = pollard.sparse_training(model, optimizer, name, density=0.3, steps=40, every=5, **options)
    for step in range(1, 31):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if sparse.method.due(step):
            gradients = dense_gradients(model, x, y)
            before = {key: copy.deepcopy(model.get_submodule(key)) for key in "02"}
        sparse.step()
        if sparse.method.due(step):
            for key, layer in before.items():
                weight, count = layer.to_dense().weight.detach().abs(), layer.topology.nnz
                gone = round(sparse.method.fraction(step) * count)
                stay = first_by(weight.masked_fill(~layer.topology.mask(), -1), count - gone)
                scores = gradients[key].abs().flatten()
                scores[stay] = -1
                after = torch.cat((stay, first_by(scores, gone))).sort().values
                assert torch.equal(model.get_submodule(key).topology.positions(), after)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_two_halves_of_a_batch_count_as_one_batch(name):
    topologies = []
    for parts in (1, 2):
        model, (x, y) = network(), examples()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        options = {} if name in {"static", "dsd"} else {"every": 5}
        # Signs of sums over a batch are drawn anew for each pass, so graest is not asked.
        sparse = pollard.sparse_training(model, optimizer, name, density=0.3, steps=20, **options)
        for _ in range(20):
            optimizer.zero_grad()
            for half_x, half_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(half_x), half_y) / parts).backward()
            sparse.step()
        topologies.append([weight.topology for weight in sparse.weights.values()])
    assert all(one.same_as(other) for one, other in zip(*topologies, strict=True))


@pytest.mark.parametrize("name", ["rigl", "snfs"])
def test_a_skipped_step_leaves_nothing_behind(name):
    topologies = []
    for skips in (False, True):
        model, (x, y) = network(), examples()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        sparse = pollard.sparse_training(model, optimizer, name, density=0.3, steps=20, every=5)
        for _ in range(10):
            if skips:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x * torch.nan), y).backward()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            sparse.step()
        topologies.append([weight.topology for weight in sparse.weights.values()])
    assert all(one.same_as(other) for one, other in zip(*topologies, strict=True))


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("dense_memory", [False, True])
def test_snfs_grows_by_an_exponential_mean_of_the_dense_gradient(storage, dense_memory):
    model, (x, y) = network(), examples(count=256)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = pollard.snfs(
        model, optimizer, density=0.3, steps=40, every=6, dense_memory=dense_memory, window=6, storage=storage
    )
    mean, window = dict.fromkeys("02", 0.0), []
    for step in range(1, 31):
        batch = torch.arange(16 * step, 16 * step + 16) % 256
        gradients = dense_gradients(model, x[batch], y[batch])
        window = [*window, gradients][-6:]
        mean = {key: 0.9 * mean[key] + gradients[key] for key in "02"}
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        if sparse.method.due(step):
            watched = {key: sparse.weights[key].passes.rows(0, len(mean[key])) for key in "02"}
            for key in "02":
                last = sum(0.9**age * each[key] for age, each in enumerate(reversed(window)))
                torch.testing.assert_close(watched[key], mean[key] if dense_memory else last)
        sparse.step()


def test_a_watched_model_is_copied_and_made_dense():
    model, (x, y) = network(), examples()
    sparse = Sparsifier(
        pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3)),
        torch.optim.SGD(model.parameters(), 0.1),
        METHODS["rigl"](0.3, 20, every=1),
    )
    twin = pollard.densify_(copy.deepcopy(model))
    torch.testing.assert_close(twin(x), model(x))
    twin = copy.deepcopy(model)
    hooks = [hook for layer in twin for hook in layer._forward_hooks.values()]
    for _ in range(3):  # gradients add up: a watcher would keep each pass
        nn.functional.cross_entropy(twin(x), y).backward()
    assert hooks
    assert not any(hook.__self__.listener.seen for hook in hooks)
    assert not any(weight.passes.seen for weight in sparse.weights.values())


@pytest.mark.parametrize("name", ["rigl", "snfs"])
def test_a_copied_sparsifier_goes_on_from_the_passes_that_it_has_seen(name):
    model, (x, y) = network(), examples()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = pollard.sparse_training(model, optimizer, name, density=0.3, steps=40, every=5)

    def learn(which, steps):
        for _ in range(steps):
            which.optimizer.zero_grad()
            nn.functional.cross_entropy(which.model(x), y).backward()
            which.step()

    learn(sparse, 13)
    twin = copy.deepcopy(sparse)
    learn(sparse, 7)
    learn(twin, 7)
    assert sparse.updates == twin.updates
    for one, other in zip(sparse.weights.values(), twin.weights.values(), strict=True):
        assert one.topology.same_as(other.topology)
        assert torch.equal(one.values(), other.values())
