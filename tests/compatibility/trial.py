"""What a piece of torch, or of a library around it, is tried on: a small network that trains by one of four methods.

The measure of a loop is the same training by hand, on dense weights under masks: `ordinary`. The measure of anything that
reads a model is the dense network that it equals: `dense`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pollard
from pollard.nn.surgery import Storage

METHODS = ("static", "rigl", "set", "gmp")
STEPS, EVERY, BATCH, EXAMPLES = 12, 3, 16, 64
UPDATES = {"static": 0, "rigl": 3, "set": 3, "gmp": 3}
DENSITY = 0.3

_draw = torch.Generator().manual_seed(1)
X = torch.randn(EXAMPLES, 12, generator=_draw)
Y = (X @ torch.randn(12, 4, generator=_draw)).argmax(1)

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def network(*, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    relus = nn.ReLU(inplace), nn.ReLU(inplace)
    return nn.Sequential(nn.Linear(12, 24), relus[0], nn.Linear(24, 16), relus[1], nn.Linear(16, 4))


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """What step number `step`, from 0, is taken on; the batches follow each other round and round."""
    at = slice(step * BATCH % EXAMPLES, step * BATCH % EXAMPLES + BATCH)
    return X[at], Y[at]


class Training:
    """A model, an optimizer and what moves the topology, and the most ordinary loop over them."""

    def __init__(
        self,
        method: str,
        make: MakeOptimizer = sgd,
        *,
        model: nn.Module | None = None,
        storage: Storage = "compressed",
        steps: int = STEPS,
    ) -> None:
        self.method = method
        self.model = network() if model is None else model
        self.optimizer = make(self.model.parameters())
        options = {} if method == "static" else {"every": EVERY}
        self.sparse = pollard.sparse_training(
            self.model, self.optimizer, method, density=DENSITY, steps=steps, storage=storage, **options
        )

    def loss(self, step: int, called: nn.Module | None = None) -> Tensor:
        x, y = batch(step)
        return F.cross_entropy((called or self.model)(x), y)

    def backward(self, step: int, called: nn.Module | None = None) -> None:
        self.sparse.optimizer.zero_grad()
        self.loss(step, called).backward()

    def go(self, steps: Iterable[int] = range(STEPS), called: nn.Module | None = None) -> Training:
        for step in steps:
            self.backward(step, called)
            self.sparse.step()
        return self


def dense(model: nn.Module) -> nn.Module:
    """A dense network of the same function."""
    return pollard.densify_(copy.deepcopy(model))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters of the dense network that `model` equals."""
    return {name: parameter.detach().clone() for name, parameter in dense(model).named_parameters()}


@cache
def ordinary(method: str, make: MakeOptimizer = sgd) -> dict[str, Tensor]:
    """The weights after training by hand, in the slow twin."""
    return weights(Training(method, make, storage="masked").go().model)


def require_ordinary(training: Training, make: MakeOptimizer = sgd, model: nn.Module | None = None) -> None:
    """The loop that `training` has been through did what a loop by hand does, updates of the topology included."""
    assert training.sparse.updates == UPDATES[training.method]
    require_weights(model or training.model, ordinary(training.method, make))


def require_weights(model: nn.Module, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(weights(model), expected)


@cache
def _trained(method: str) -> Training:
    return Training(method).go(range(STEPS - 2))


def trained(method: str) -> Training:
    """A training of its own that has come a long way and is not at its end: whatever watches layers still does."""
    return copy.deepcopy(_trained(method))


def model_of(method: str) -> nn.Module:
    return trained(method).model
