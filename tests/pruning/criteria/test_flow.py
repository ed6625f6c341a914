from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from networks import BATCH, lenet
from pollard.errors import InvalidInput, LayerCollapse
from pollard.pruning import MEASUREMENTS, Network, prune
from pollard.pruning.scoring import Scoring

DOUBLE = BATCH[0].double(), BATCH[1]
NAMES = ["0", "2", "4"]


def measured(name, model, batch=None, scoring=None, **options):
    names = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    network = Network(model, names, batch, scoring, **options)
    with network.undisturbed():
        return MEASUREMENTS[name](network)


def bias_free(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# ---------------------------------------------------------------------------------------------------------------- GraSP


def flat_gradient(model, scale=1.0):
    loss = functional.cross_entropy(model(DOUBLE[0]) / scale, DOUBLE[1])
    weights = [model.get_submodule(name).weight for name in NAMES]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_the_hessian_gradient_is_half_the_gradient_of_the_squared_gradient_norm(chunk_size):
    model = lenet().double()
    found = measured("hessian_gradient", model, DOUBLE, Scoring(temperature=3.0, chunk_size=chunk_size))
    weights = [model.get_submodule(name).weight for name in NAMES]
    expected = torch.autograd.grad(flat_gradient(model, 3.0).square().sum() / 2, weights)
    for name, wanted in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-12)


def test_the_grasp_score_predicts_what_removing_a_weight_does_to_the_gradient_norm():
    model = lenet().double()
    score = measured("hessian_gradient", model, DOUBLE)["2"] * model[2].weight.detach()
    before = float(flat_gradient(model).detach().square().sum())
    weight, step = model[2].weight.data, 1e-5
    for index in [(0, 0), (3, 11), (9, 2), (15, 23)]:
        kept = float(weight[index])
        weight[index] -= step * kept  # a small step towards removal
        change = (float(flat_gradient(model).detach().square().sum()) - before) / step
        weight[index] = kept
        assert change == pytest.approx(-2 * float(score[index]), rel=1e-3, abs=1e-9)


def test_grasp_keeps_what_the_gradient_flow_would_miss():
    model = lenet().double()
    plan = prune(model, "grasp", 0.3, DOUBLE)
    found = measured("hessian_gradient", model, DOUBLE, Scoring(mode="train", temperature=200.0))
    scores = torch.cat([(found[name] * model.get_submodule(name).weight).flatten() for name in NAMES])
    kept = torch.cat([plan.mask(name).flatten() for name in NAMES])
    assert scores[kept].min() >= scores[~kept].max()
    absolute = prune(model, "grasp-abs", 0.3, DOUBLE)
    kept = torch.cat([absolute.mask(name).flatten() for name in NAMES])
    assert scores[kept].abs().min() >= scores[~kept].abs().max()


# -------------------------------------------------------------------------------------------------------------- SynFlow


@given(st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=3, max_size=6))
def test_every_layer_carries_the_whole_flow_and_every_unit_passes_on_what_it_gets(seed, sizes):
    model = bias_free(*sizes, seed=seed)
    flows = list(measured("synaptic_flow", model, input_shape=(sizes[0],)).values())
    product = torch.ones(sizes[0], dtype=torch.float64)
    for layer in model:
        if isinstance(layer, nn.Linear):
            product = layer.weight.detach().double().abs() @ product
    for flow in flows:
        assert float(flow.sum()) == pytest.approx(float(product.sum()), rel=1e-10)
    for before, after in itertools.pairwise(flows):
        torch.testing.assert_close(before.sum(1), after.sum(0), rtol=1e-10, atol=0)


def test_at_the_maximal_compression_one_weight_a_layer_is_left_where_one_round_collapses():
    model = bias_free(20, 30, 30, 30, 10)
    total = sum(module.weight.numel() for module in model if isinstance(module, nn.Linear))
    plan = prune(model, "synflow", 4 / total, input_shape=(20,))
    assert [topology.nnz for topology in plan.values()] == [1, 1, 1, 1]
    with pytest.warns(LayerCollapse):
        prune(model, "synflow", 4 / total, input_shape=(20,), rounds=1)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_flows_beyond_the_range_of_floats_rank_as_they_would_within(scale):
    model = bias_free(*[12] * 40)
    plain = prune(model, "synflow", 0.2, input_shape=(12,), rounds=3)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight *= scale
    far = prune(model, "synflow", 0.2, input_shape=(12,), rounds=3)
    assert not any(topology.nnz == 0 for topology in far.values())
    assert all(torch.equal(plain.mask(name), far.mask(name)) for name in plain)


class Deep(nn.Module):
    """Skip connections all the way: paths of every length, up to the number of layers."""

    def __init__(self, depth, width, step):
        super().__init__()
        draw = torch.Generator().manual_seed(depth)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        for layer in self.layers:
            layer.weight.data = torch.randint(-8, 9, (width, width), generator=draw) * step

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x


@pytest.mark.parametrize(("depth", "step"), [(20, 1 / 8), (800, 1 / 8), (1200, 1 / 8)])
def test_deep_residual_flows_are_exact_where_floats_end(depth, step):
    width = 3
    model = Deep(depth, width, step)
    names = [f"layers.{number}" for number in range(depth)]
    network = Network(model, names, input_shape=(width,))
    with network.undisturbed():
        found = MEASUREMENTS["synaptic_flow"](network)
    # Whole numbers of any size: eight times the weights, and eight times the skip connections.
    matrices = [(layer.weight.abs() / step).int().tolist() for layer in model.layers]
    skip, rows = round(1 / step), range(width)
    into = [[1] * width]
    for matrix in matrices:
        into.append([skip * into[-1][i] + sum(matrix[i][j] * into[-1][j] for j in rows) for i in rows])
    out = [[1] * width]
    for matrix in reversed(matrices):
        out.append([skip * out[-1][j] + sum(matrix[i][j] * out[-1][i] for i in rows) for j in rows])
    total = sum(into[-1])
    assert depth == 20 or total > skip**depth * 2**1024, "past float64"
    exact = [
        [[Fraction(out[depth - 1 - n][i] * matrices[n][i][j] * into[n][j], total) for j in rows] for i in rows]
        for n in range(depth)
    ]
    largest = max(share for layer in exact for row in layer for share in row)
    best = max(float(score.max()) for score in found.values())
    for name, layer in zip(names, exact, strict=True):
        expected = torch.tensor([[float(share / largest) for share in row] for row in layer], dtype=torch.float64)
        torch.testing.assert_close(found[name] / best, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_chains_rank_as_they_would_within_however_far_they_go(scale):
    model = bias_free(*[12] * 80)
    plain = prune(model, "synflow", 0.2, input_shape=(12,), rounds=2)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight *= scale
    far = prune(model, "synflow", 0.2, input_shape=(12,), rounds=2)
    assert all(torch.equal(plain.mask(name), far.mask(name)) for name in plain)


def test_biases_and_running_means_keep_their_proportion_where_the_flow_is_scaled():
    def network(deep):
        torch.manual_seed(0)
        head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()
        head[1].running_mean.uniform_(0, 0.1)
        tail = [module for _ in range(deep) for module in (nn.Linear(4, 4, bias=False), nn.ReLU())]
        model = nn.Sequential(*head, *tail)
        for layer in tail[::2]:
            layer.weight.data = torch.ones(4, 4) * 2.0**20
        return model

    near, far = (measured("synaptic_flow", network(deep), input_shape=(4,))["0"] for deep in (1, 60))
    torch.testing.assert_close(far / far.max(), near / near.max(), rtol=1e-12, atol=0)


def test_a_flow_that_cannot_be_told_is_refused():
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(14))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x).square()
            return x

    with pytest.raises(InvalidInput, match="leaves float64 at every scale"):
        measured("synaptic_flow", Squared(), input_shape=(4,))


def test_scores_are_magnitudes_where_a_norm_turns_the_flow_around():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    model[0].running_mean.uniform_(-2, 2)
    network = Network(model, ["1", "3"], input_shape=(6,))
    with network.undisturbed():
        scores = MEASUREMENTS["synaptic_flow"](network)
    assert all(bool((score >= 0).all()) for score in scores.values())
    assert all(bool((score > 0).any()) for score in scores.values())


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


@pytest.mark.parametrize("criterion", ["synflow", "ntk-sap"])
def test_tokens_carry_no_signal_without_data(criterion):
    batch = torch.randint(10, (8, 5)), torch.arange(8) % 3
    with pytest.raises(InvalidInput, match="whole numbers"):
        prune(Tokens(), criterion, 0.5, batch)
    assert prune(Tokens(), "snip", 0.5, batch, layers="*").nnz == 6


def test_flow_passes_residual_connections():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 3, bias=False)

        def forward(self, x):
            return self.second(x + torch.relu(self.first(x)))

    model = Residual()
    flows = measured("synaptic_flow", model, input_shape=(5,))
    first, second = (module.weight.detach().double().abs() for module in (model.first, model.second))
    inside = first @ torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(flows["second"], second * (1 + inside))
    torch.testing.assert_close(flows["first"], first * second.sum(0)[:, None])


def test_no_data_is_looked_at_and_the_input_shape_is_all_that_is_needed():
    model = bias_free(12, 8, 4)
    by_shape = prune(model, "synflow", 0.3, input_shape=(12,))
    by_batch = prune(model, "synflow", 0.3, (torch.randn(5, 12), torch.zeros(5).long()))
    assert all(torch.equal(by_shape.mask(name), by_batch.mask(name)) for name in by_shape)
