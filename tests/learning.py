"""A small network that any method trains under any optimizer."""

from __future__ import annotations

import torch
from torch import nn, optim

import pollard
from pollard.training.methods import METHODS

STEPS = 40
# Methods whose updates are not laid out by every=.
UNSTEADY = {"static", "dsd"}
MOVING = sorted(set(METHODS) - {"static"})
OPTIMIZERS = {
    "sgd": lambda parameters: optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda parameters: optim.Adam(parameters, 0.01, weight_decay=1e-2),
    "adamw": lambda parameters: optim.AdamW(parameters, 0.01, amsgrad=True, weight_decay=0.1),
    "rmsprop": lambda parameters: optim.RMSprop(parameters, 0.005, momentum=0.9, centered=True, weight_decay=1e-2),
    "adagrad": lambda parameters: optim.Adagrad(parameters, 0.05, weight_decay=1e-2),
    "adadelta": lambda parameters: optim.Adadelta(parameters, weight_decay=1e-2),
    "nadam": lambda parameters: optim.NAdam(parameters, 0.01, weight_decay=1e-2),
    "radam": lambda parameters: optim.RAdam(parameters, 0.01, weight_decay=1e-2),
    "adamax": lambda parameters: optim.Adamax(parameters, 0.01, weight_decay=1e-2),
    "rprop": lambda parameters: optim.Rprop(parameters, 0.01),
    "asgd": lambda parameters: optim.ASGD(parameters, 0.05, weight_decay=1e-2),
}


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 4)).to(dtype)


def examples(dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(96, 16, generator=draw, dtype=dtype)
    return x, (x @ torch.randn(16, 4, generator=draw, dtype=dtype)).argmax(1)


def options_of(name):
    return {} if name in UNSTEADY else {"every": 5}


def begin(name, optimizer="sgd", *, steps=STEPS, density=0.2, **options):
    model = network()
    made = OPTIMIZERS[optimizer](model.parameters())
    return pollard.sparse_training(
        model, made, name, density=density, steps=steps, seed=3, **{**options_of(name), **options}
    )


def learn(sparse, steps=1, after=lambda: None):
    x, y = examples()
    for _ in range(steps):
        batch = torch.arange(32 * sparse.steps, 32 * sparse.steps + 32) % len(x)
        sparse.optimizer.zero_grad()
        nn.functional.cross_entropy(sparse.model(x[batch]), y[batch]).backward()
        after()
        sparse.step()


def topologies_of(sparse):
    return [weight.topology for weight in sparse.weights.values()]
