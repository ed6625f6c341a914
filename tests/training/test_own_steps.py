"""With steps of their own, newcomers are stepped as by an optimizer that was made when they came; what stays, as ever."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

import pollard
from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from pollard.kernels.indices.rewire import rewire
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.training.own_steps import OwnSteps
from pollard.training.rounding import StochasticRounding
from pollard.training.weights import CompressedWeight, MaskedWeight

X, Y = torch.randn(64, 20, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
# eps is as if it were up to ten times larger for newcomers: here it is next to nothing.
OPTIMIZERS = {
    "adam": lambda p: Adam(p, 0.01, eps=1e-30),
    "adam, decay": lambda p: Adam(p, 0.01, eps=1e-30, weight_decay=0.1),
    "adam, maximize": lambda p: Adam(p, 0.01, eps=1e-30, weight_decay=0.1, maximize=True),
    "adam, foreach": lambda p: Adam(p, 0.01, eps=1e-30, foreach=True),
    "adamw, fused": lambda p: AdamW(p, 0.01, eps=1e-30, weight_decay=0.1, fused=True),
    "adamw, betas": lambda p: AdamW(p, 0.01, eps=1e-30, betas=(0.8, 0.99)),
    "adam, no momentum": lambda p: Adam(p, 0.01, eps=1e-30, betas=(0.0, 0.99)),
}


def weight_of(storage, dense, mask, make):
    topology = Topology.from_mask(mask)
    linear = nn.Linear(*reversed(dense.shape), bias=False, dtype=torch.float64)
    linear.weight.data = dense * mask
    if storage == "masked":
        masked = MaskedLinear(linear.weight, topology)
        return MaskedWeight("it", masked, make(masked.parameters()))
    sparse = SparseLinear.from_dense(linear, topology)
    return CompressedWeight("it", sparse, make(sparse.parameters()))


def step(weight, own, gradient):
    """One step along the dense `gradient`."""
    kept = SparseMatrix.from_dense(gradient, weight.topology)
    weight.parameter.grad = kept.values if isinstance(weight, CompressedWeight) else kept.to_dense()
    own.before()
    weight.optimizer.step()
    own.after()


def plain(dense, gradients, make):
    """Where torch's own takes all of `dense` along `gradients`."""
    parameter = nn.Parameter(dense.clone())
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_newcomers_go_the_way_of_a_new_optimizer_and_what_stays_of_the_old(make, storage):
    draw = torch.Generator().manual_seed(1)
    dense = torch.randn(6, 8, generator=draw, dtype=torch.float64)
    first, second = torch.rand(6, 8, generator=draw) < 0.5, torch.rand(6, 8, generator=draw) < 0.5
    gradients = list(torch.randn(220, 6, 8, generator=draw, dtype=torch.float64))
    weight = weight_of(storage, dense, first, make)
    own = OwnSteps({"it": weight})
    for gradient in gradients[:150]:
        step(weight, own, gradient)
    came = second & ~first
    stays = SparseMatrix.from_dense(second.double(), weight.topology).values > 0
    after, source = rewire(weight.topology, stays, came.flatten().nonzero().flatten())
    weight.move(after, source)
    for gradient in gradients[150:]:
        step(weight, own, gradient)
    found = weight.layer.to_dense().weight.detach()
    newcomers = plain(torch.zeros_like(dense), gradients[150:], make)
    torch.testing.assert_close(found[came], newcomers[came], rtol=1e-9, atol=1e-12)
    stayed = first & second
    torch.testing.assert_close(found[stayed], plain(dense, gradients, make)[stayed], rtol=1e-9, atol=1e-12)


def test_where_the_squares_are_forgotten_as_fast_as_gradients_steps_are_never_larger_than_without():
    make = lambda p: Adam(p, 0.01, betas=(0.9, 0.9))  # noqa: E731
    weight = weight_of("compressed", torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool), make)
    own = OwnSteps({"it": weight})
    for _ in range(30):
        step(weight, own, torch.ones(2, 4, dtype=torch.float64))
    weight.optimizer.state[weight.parameter]["joined"].fill_(30)
    state = weight.optimizer.state[weight.parameter]
    state["exp_avg"].zero_()
    state["exp_avg_sq"].zero_()
    bare = copy.deepcopy(weight)
    step(weight, own, torch.ones(2, 4, dtype=torch.float64))
    step(bare, OwnSteps({}), torch.ones(2, 4, dtype=torch.float64))
    torch.testing.assert_close(weight.values(), bare.values())


def started(make, method="rigl", storage="compressed", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4)).double()
    start = {"density": 0.3, "steps": 400, "every": 25, "storage": storage, "seed": 1, **options}
    return pollard.sparse_training(model, make(model.parameters()), method, **start)


def go(sparse, steps, watch=lambda: None):
    for _ in range(steps):
        chosen = torch.arange(16 * sparse.steps, 16 * sparse.steps + 16) % len(X)
        sparse.zero_grad()
        nn.functional.cross_entropy(sparse.model(X[chosen].double()), Y[chosen]).backward()
        sparse.step()
        watch()
    return sparse


@pytest.mark.parametrize(("own_steps", "least", "most"), [(False, 1.3, 1.4), (True, 0.99, 1.01)])
def test_the_first_step_of_a_newcomer_is_the_learning_rate(own_steps, least, most):
    sparse = go(started(lambda p: Adam(p, 1e-3), own_steps=own_steps), 199)
    held = sparse.model[0].topology
    go(sparse, 1)
    came = ~torch.isin(sparse.model[0].topology.positions(), held.positions())
    before = sparse.model[0].values.detach()[came].clone()
    assert not before.any()
    go(sparse, 1)
    steps = (sparse.model[0].values.detach()[came]).abs() / 1e-3
    assert least < float(steps.max()) < most


@pytest.mark.parametrize("method", ["rigl", "set", "gmp"])
def test_both_storages_go_the_same_way_and_resume_bit_for_bit(method):
    make = lambda p: AdamW(p, 0.01, weight_decay=0.01)  # noqa: E731
    sparse, twin = (started(make, method, storage, own_steps=True) for storage in ("compressed", "masked"))
    go(sparse, 110)
    go(twin, 110)
    for layer in (0, 2):
        torch.testing.assert_close(
            sparse.model[layer].to_dense().weight, twin.model[layer].to_dense().weight, rtol=1e-6, atol=1e-9
        )
    states = copy.deepcopy([each.state_dict() for each in (sparse.model, sparse)])
    again = started(make, method, own_steps=True)
    for each, state in zip((again.model, again), states, strict=True):
        each.load_state_dict(state)
    assert torch.equal(go(again, 30).model[0].values, go(sparse, 30).model[0].values)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, 0.1),
        lambda p: Adam(p, amsgrad=True),
        lambda p: StochasticRounding(SGD(p, 0.1)),
    ],
)
def test_other_optimizers_are_refused(make):
    with pytest.raises(InvalidInput, match=r"own_steps=True.*Adam or AdamW"):
        started(make, own_steps=True)
