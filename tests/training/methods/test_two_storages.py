"""Two storages, one algorithm: every method moves through the same topologies, masked and compressed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pollard.nn.surgery import sparsify_
from pollard.pruning.decision import prune
from pollard.training.methods import METHODS
from pollard.training.sparsifier import Sparsifier

STEPS = 120
EVERY = {"static": {}, "dsd": {}, "granet": {"every": 20}, "gse": {"every": 10}}
VARIANTS = [
    *[(name, {}) for name in METHODS],
    ("gmp", {"allocation": "global", "curve": "one-cycle"}),
    ("gse", {"guide": "graest"}),
    ("gse", {"guide": "uniform"}),
    ("mest", {"soft": True}),
    ("snfs", {"dense_memory": True}),
    ("sparse-momentum", {"dense_memory": True}),
    ("top-kast", {"dense_memory": True}),
    ("set", {"signed": False}),
]
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.003, weight_decay=1e-3, amsgrad=True),
}


def examples(dtype):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(256, 20, generator=draw, dtype=dtype)
    return x, (x @ torch.randn(20, 5, generator=draw, dtype=dtype)).argmax(1)


def network(dtype, density, storage, pattern="unstructured", allocation="erk"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 5)).to(dtype)
    choice = {"*": pattern, "4": "unstructured"}
    plan = prune(
        model, "random", density, allocation=allocation, pattern=choice, generator=torch.Generator().manual_seed(3)
    )
    dense = {name: model[int(name)].weight.detach().clone() for name in plan}
    return sparsify_(model, plan, storage=storage), dense


def build(name, density=0.2, **options):
    every = EVERY.get(name, {"every": 10})
    return METHODS[name](density, STEPS, **{**every, **options})


def trajectory(method, storage, *, optimizer="sgd", dtype=torch.float64, pattern="unstructured", steps=STEPS):
    first = 0.2 if method.density is None else method.density(0)
    allocation = "erk" if method.allocation == "global" else method.allocation
    model, dense = network(dtype, first, storage, pattern, allocation)
    sparsifier = Sparsifier(model, OPTIMIZERS[optimizer](model.parameters()), method, seed=5, dense=dense)
    x, y = examples(dtype)
    losses, topologies = [], []
    for step in range(steps):
        batch = torch.arange(32 * step, 32 * step + 32) % len(x)
        sparsifier.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        sparsifier.step()
        losses.append(loss.item())
        if method.due(step + 1):
            topologies.append([weight.topology for weight in sparsifier.weights.values()])
    return losses, topologies, sparsifier


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name, options", VARIANTS, ids=str)
def test_masked_and_compressed_training_go_the_same_way(name, options, optimizer):
    method = build(name, **options)
    masked, masked_topologies, _ = trajectory(method, "masked", optimizer=optimizer)
    losses, topologies, sparsifier = trajectory(method, "compressed", optimizer=optimizer)
    torch.testing.assert_close(losses, masked, rtol=1e-7, atol=1e-9)
    assert len(topologies) == len(masked_topologies) == sparsifier.updates
    for ours, theirs in zip(topologies, masked_topologies, strict=True):
        assert all(one.same_as(other) for one, other in zip(ours, theirs, strict=True))
    if name != "static":
        assert sparsifier.updates
        assert (
            not all(one.same_as(other) for one, other in zip(topologies[0], topologies[-1], strict=True))
            or name == "dsd"
        )
    assert losses[-1] < losses[0]
