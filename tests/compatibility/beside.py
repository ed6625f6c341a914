"""What other processes do in these trials: torch starts them, so that they live in a module that it can import."""

from __future__ import annotations

import torch
from torch.distributed import fsdp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from compatibility.trial import (
    BATCH,
    DENSITY,
    EVERY,
    STEPS,
    Training,
    X,
    Y,
    dense,
    network,
    require_ordinary,
    sgd,
)
from pollard.training import processes
from pollard.training.methods import METHODS
from pollard.training.sparsifier import Sparsifier


def gradients(model, x):
    """The output of `model` and the gradients of its sum of squares, as plain numbers."""
    torch.set_num_threads(1)
    model.zero_grad()
    found = model(x)
    found.square().sum().backward()
    return found.tolist(), [parameter.grad.tolist() for parameter in model.parameters()]


def half(step):
    """This rank's half of a batch."""
    at = (torch.arange(BATCH) + step * BATCH)[processes.rank() :: 2] % len(X)
    return X[at], Y[at]


def in_step(training, called, after=lambda: None):
    """Train on two ranks; the same as on one."""
    for step in range(STEPS):
        x, y = half(step)
        training.sparse.optimizer.zero_grad()
        F.cross_entropy(called(x), y).backward()
        after()
        training.sparse.step()
    require_ordinary(training)


def wrapped(method):
    training = Training(method)
    in_step(training, DistributedDataParallel(training.model))


def accumulated(method):
    """This rank's half in two parts, of which the first is kept back; all of it scaled."""
    training = Training(method)
    called, scaler = DistributedDataParallel(training.model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(STEPS):
        x, y = half(step)
        training.sparse.zero_grad()
        with called.no_sync():
            scaler.scale(F.cross_entropy(called(x[::2]), y[::2]) / 2).backward()
        scaler.scale(F.cross_entropy(called(x[1::2]), y[1::2]) / 2).backward()
        scaler.step(training.sparse)
        scaler.update()
    require_ordinary(training)


def averaged(method):
    training = Training(method)
    in_step(training, training.model, lambda: processes.average_gradients(training.model))


def sharded(method):
    """Sparse layers made first, sharded then, and an optimizer over the shards."""
    model = Training(method).model
    fsdp.fully_shard(model)
    optimizer = sgd(model.parameters())
    stepped = optimizer
    if method != "static":
        stepped = Sparsifier(model, optimizer, METHODS[method](DENSITY, STEPS, every=EVERY))
    for step in range(STEPS):
        x, y = half(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        stepped.step()
    torch.testing.assert_close(model(X), dense(Training(method).go().model)(X))


def sharded_first(method):
    """Dense layers sharded, then made sparse."""
    model = network()
    fsdp.fully_shard(model)
    Training(method, model=model)


class Labelled(Dataset):
    """Examples that a model labels where they are loaded."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        torch.set_num_threads(1)
        with torch.no_grad():
            return self.model(X[row : row + 1])[0]


def race(training, rank):
    """One of the processes that train the same shared weights, without waiting for each other."""
    torch.set_num_threads(1)
    for step in range(rank, 60, 2):
        training.go([step])
