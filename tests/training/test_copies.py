"""A Sparsifier that is pickled or saved with its model goes on as the first does."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD

import pollard
from pollard.training.methods import METHODS

DENSITY = 0.3


def saved_and_loaded(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def train(model, sparse, times):
    for step in range(times):
        sparse.zero_grad()
        model(torch.randn(6, 20, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        sparse.step()


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), saved_and_loaded],
    ids=["copy", "pickle", "save"],
)
@pytest.mark.parametrize(("method", "options"), [*((method, {}) for method in METHODS), ("mest", {"soft": True})])
def test_what_comes_back_goes_on_alike(method, options, again):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    sparse = pollard.sparse_training(
        model, SGD(model.parameters(), 0.1, momentum=0.9), method, density=DENSITY, steps=30, **options
    )
    train(model, sparse, 11)
    other, theirs = again((model, sparse))
    assert theirs.model is other
    train(model, sparse, 15)
    train(other, theirs, 15)
    assert (theirs.steps, theirs.updates) == (sparse.steps, sparse.updates)
    for ours, copied in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(copied, ours, rtol=0, atol=0)
