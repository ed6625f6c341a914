"""An optimizer that was made before layers were replaced is told that it trains nothing."""

import gc

import pytest
import torch
from torch import nn
from torch.optim import SGD

import pollard
from pollard.errors import SteppedPast
from pollard.nn import orphans


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(3, 6)).sum().backward()
    optimizer.step()


def test_an_optimizer_that_is_older_than_the_sparse_layers():
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    with pytest.warns(SteppedPast, match="SGD steps 4 parameters of layers that were replaced"):
        step(model, optimizer)
    step(model, optimizer)  # once


def test_an_optimizer_that_is_older_than_the_dense_layers():
    model = network()
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    optimizer = SGD(model.parameters(), 0.1)
    pollard.densify_(model)
    with pytest.warns(SteppedPast, match="Make the optimizer after"):
        step(model, optimizer)


def test_optimizers_that_are_right():
    model = network()
    sparse = pollard.static(model, SGD(model.parameters(), 0.1), density=0.5, steps=10)
    step(model, sparse)
    other = network()
    first = other[0]
    pollard.sparsify_(other, pollard.prune(other, "magnitude", 0.5))
    step(other, SGD(other.parameters(), 0.1))
    # Whoever trains the old layer by itself means it.
    step(first, SGD(first.parameters(), 0.1))


def test_nothing_is_kept_of_what_was_replaced():
    gc.collect()
    before = len(orphans._orphans)
    model = network()
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    gc.collect()
    assert len(orphans._orphans) == before
