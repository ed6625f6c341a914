"""torch.fx takes layers of ours for what it takes torch's for: one call."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import fx, nn

import pollard
from pollard.formats.topology import Topology

X = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(32, 16)
        self.rnn, self.attention = nn.LSTM(16, 8, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        h = self.fc(self.conv(x).permute(0, 2, 1, 3).flatten(2))
        first = h.new_zeros(1, h.shape[0], 8)
        h, _ = self.rnn(h, (first, first))
        return self.attention(h, h, value=h, need_weights=False)[0]


def sparse(storage="compressed"):
    torch.manual_seed(0)
    model = Network().eval()
    return pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.4), storage=storage)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_a_traced_model_calls_its_sparse_layers(storage):
    model = sparse(storage)
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        "conv",
        "fc",
        "rnn",
        "attention",
    ]
    assert traced.state_dict().keys() == model.state_dict().keys()
    for each in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        torch.testing.assert_close(each(X), model(X))
    torch.testing.assert_close(pollard.densify_(traced)(X), pollard.densify_(sparse(storage))(X), rtol=1e-4, atol=1e-5)


def test_what_was_traced_goes_by_the_topology_that_there_is_now():
    model = sparse()
    traced = fx.symbolic_trace(model)
    moved = Topology.random((16, 32), model.fc.density, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.fc.keep_(moved, torch.ones(moved.nnz))
    torch.testing.assert_close(traced(X), model(X))


def test_a_traced_model_is_trained_by_a_method():
    traced = fx.symbolic_trace(sparse()).train()
    method = pollard.rigl(traced, torch.optim.SGD(traced.parameters(), 0.1), density=0.4, steps=4, every=2)
    for _ in range(4):
        method.zero_grad()
        traced(X).square().mean().backward()
        method.step()
    assert method.updates > 0


class Entering(fx.Tracer):
    """Looks into every module, and notes which."""

    def __init__(self):
        super().__init__()
        self.entered = []

    def is_leaf_module(self, m, module_qualified_name):
        self.entered.append(module_qualified_name)
        return False


def test_a_tracer_that_enters_all_modules_is_asked_of_each_and_given_a_call():
    model, tracer = sparse(), Entering()
    traced = fx.GraphModule(model, tracer.trace(model))
    assert tracer.entered == ["conv", "fc", "rnn", "attention"]
    torch.testing.assert_close(traced(X), model(X))


@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_a_layer_that_is_traced_by_itself_is_looked_into(storage):
    layer, x = sparse(storage).fc, torch.randn(5, 32)
    traced = fx.symbolic_trace(layer)
    assert not [node for node in traced.graph.nodes if node.op == "call_module"]
    torch.testing.assert_close(traced(x), layer(x))
