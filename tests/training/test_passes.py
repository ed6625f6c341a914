"""What growth looks at is the dense weight's `.grad` under a mask, whatever the loop does before its step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pollard
from pollard.nn.surgery import sparse_layers

X = torch.randn(12, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(12) % 3


def loss_of(model, x=X):
    return nn.functional.cross_entropy(model(x), Y[: len(x)])


def ordinary(model):
    loss_of(model).backward()


def accumulated(model):
    for x in X.chunk(3):
        loss_of(model, x).backward()


def penalised(model):
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    (loss_of(model) + slope.square().mean()).backward()


def looked_at_on_the_side(model):
    torch.autograd.grad(loss_of(model), list(model.parameters()))
    loss_of(model).backward()


def for_inputs_only(model):
    x = X.clone().requires_grad_()
    loss_of(model, x).backward(inputs=[x])
    loss_of(model, X + x.grad.sign()).backward()


def attacked(model, *, to_none=None):
    x = X.clone().requires_grad_()
    loss_of(model, x).backward()
    if to_none is not None:
        model.zero_grad(set_to_none=to_none)
    x.data.add_(x.grad.sign())
    loss_of(model, x).backward()


def one_graph_twice(model):
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    loss.backward()


def skipped(model):
    loss_of(model, X * torch.nan).backward()
    model.zero_grad(set_to_none=False)
    loss_of(model).backward()


def reused_buffer(model):
    buffer = torch.empty(4, 10, dtype=X.dtype)
    for x in X.chunk(3):
        loss_of(model, buffer.copy_(x)).backward()


def checkpointed(model, *, reentrant):
    x = X.clone().requires_grad_()
    nn.functional.cross_entropy(checkpoint(model, x, use_reentrant=reentrant), Y).backward()


def twice_in_one_forward(model):
    (loss_of(model) + model(-X).square().mean()).backward()


def partly_unused(model):
    model(2 * X)
    with torch.no_grad():
        model(3 * X)
    loss_of(model).backward()


def frozen_for_one_pass(model):
    model.requires_grad_(False)
    frozen = model((X + 1).requires_grad_()).square().mean()
    model.requires_grad_(True)
    (frozen + loss_of(model)).backward()


def scaled(model):
    (loss_of(model) * 1024).backward()
    for parameter in model.parameters():
        parameter.grad.div_(1024)


LOOPS = {
    "ordinary": ordinary,
    "accumulated": accumulated,
    "gradient penalty": penalised,
    "autograd.grad on the side": looked_at_on_the_side,
    "backward for inputs only": for_inputs_only,
    "adversarial": attacked,
    "adversarial, zeroed": lambda model: attacked(model, to_none=False),
    "adversarial, thrown away": lambda model: attacked(model, to_none=True),
    "one graph twice": one_graph_twice,
    "NaN skipped": skipped,
    "a buffer used again": reused_buffer,
    "checkpointed": lambda model: checkpointed(model, reentrant=False),
    "checkpointed, reentrant": lambda model: checkpointed(model, reentrant=True),
    "twice in one forward": twice_in_one_forward,
    "outputs not used": partly_unused,
    "frozen for one pass": frozen_for_one_pass,
    "scaled": scaled,
    "no examples": lambda model: (loss_of(model) + model(X[:0]).sum()).backward(),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 3)).double()


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("name", LOOPS)
def test_passes_are_the_dense_gradient(name, storage):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = pollard.rigl(model, optimizer, density=0.4, steps=10, every=1, until=1.0, storage=storage)
    dense = network()
    for key, layer in sparse_layers(model).items():
        dense.get_submodule(key).load_state_dict(layer.to_dense().state_dict())
    LOOPS[name](model)
    LOOPS[name](dense)
    for key, weight in sparse.weights.items():
        weight.passes.settle()
        expected = dense.get_submodule(key).weight.grad
        assert expected.any()
        torch.testing.assert_close(weight.passes.rows(0, len(expected)), expected)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("dense_memory", [False, True])
def test_a_running_mean_is_of_gradients_as_the_optimizer_sees_them(storage, dense_memory):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = pollard.snfs(
        model, optimizer, density=0.4, steps=40, every=6, window=6, dense_memory=dense_memory, storage=storage
    )
    mean = {}
    for step in range(1, 6):
        optimizer.zero_grad()
        dense = network()
        for key, layer in sparse_layers(model).items():
            dense.get_submodule(key).load_state_dict(layer.to_dense().state_dict())
        loss_of(model, X * step).backward()
        loss_of(dense, X * step).backward()
        for parameter in (*model.parameters(), *dense.parameters()):
            parameter.grad.mul_(0.5**step)
        for key in sparse.weights:
            mean[key] = 0.9 * mean.get(key, 0.0) + dense.get_submodule(key).weight.grad
        if step < 5:
            sparse.step()
    for key, weight in sparse.weights.items():
        weight.passes.settle()
        torch.testing.assert_close(weight.passes.rows(0, len(mean[key])), mean[key])


def test_what_is_frozen_after_training_has_begun_does_not_move():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = pollard.rigl(model, optimizer, density=0.4, steps=20, every=2, until=1.0)
    model[0].values.requires_grad_(False)
    before = [layer.topology for layer in sparse_layers(model).values()]
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(model).backward()
        sparse.step()
    after = [layer.topology for layer in sparse_layers(model).values()]
    assert [one.same_as(other) for one, other in zip(before, after, strict=True)] == [True, False]
