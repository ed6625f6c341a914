"""What cannot be done is said by name, and leaves model, optimizer and topologies as they were."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn, optim

import pollard
from pollard.errors import InvalidInput, StoreError
from pollard.training.methods import METHODS
from pollard.training.sparsifier import Sparsifier

X, Y = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4
MOVING = sorted(set(METHODS) - {"static"})


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 4))


def learn(model, x=X):
    loss = nn.functional.cross_entropy(model(x), Y)
    loss.backward()
    return loss.detach()


def everything(model, optimizer):
    """All numbers of model and optimizer, and who steps what; flat, so that it can be compared."""
    found = dict(model.state_dict())
    for index, state in enumerate(optimizer.state.values()):
        found |= {f"{index}.{key}": entry for key, entry in state.items() if isinstance(entry, torch.Tensor)}
    ids = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    return copy.deepcopy(found), ids, [type(module) for module in model.modules()]


def same(one, other):
    numbers, ids, types = one
    return (
        ids == other[1]
        and types == other[2]
        and list(numbers) == list(other[0])
        and all(torch.equal(numbers[key], other[0][key]) for key in numbers)
    )


def due_in(name):
    return {} if name in {"static", "dsd"} else {"every": 3}


ARGUMENTS = {
    "unknown method": ("rigll", {}, "rigll"),
    "no density": ("rigl", {"density": None}, "density None"),
    "density 0": ("rigl", {"density": 0.0}, r"density 0\.0"),
    "density above 1": ("rigl", {"density": 1.5}, r"density 1\.5"),
    "no steps": ("rigl", {"steps": 0}, "steps=0"),
    "misspelt option": ("rigl", {"fractoin": 0.3}, "fractoin.* Did you mean 'fraction'"),
    "option of another": ("static", {"every": 10}, "every"),
    "fraction above 1": ("rigl", {"fraction": 1.5}, r"fraction of 1\.5"),
    "negative fraction": ("set", {"fraction": -0.1}, r"fraction of -0\.1"),
    "steps back in time": ("rigl", {"every": -5}, "every -5 steps"),
    "unknown curve": ("gmp", {"curve": "quintic"}, "quintic"),
    "unknown guide": ("gse", {"guide": "compass"}, "compass"),
    "unknown allocation": ("gmp", {"allocation": "fair"}, "fair"),
    "allocation by scores of its own": ("gmp", {"allocation": "owl"}, "'owl', which asks for scores of wanda"),
    "unknown criterion": ("rigl", {"criterion": "luck"}, "luck"),
    "no batch": ("rigl", {"criterion": "snip"}, "batch"),
    "no such layer": ("rigl", {"layers": "conv*"}, "conv"),
    "phases that cross": ("dsd", {"sparse_from": 0.8, "dense_from": 0.2}, "sparse phase"),
    "rows of one length in grains": ("srigl", {"pattern": "v4"}, "v4"),
    "layers exchange unlike grains": ("sparse-momentum", {"pattern": {"0": "v4", "2": "v2"}}, "v2, v4"),
    "layers rank unlike grains": ("granet", {"pattern": {"0": "v4", "2": "v2"}}, "v2, v4"),
}


@pytest.mark.parametrize("name, options, named", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_a_bad_argument_changes_nothing(name, options, named, storage):
    model = network()
    optimizer = optim.Adam(model.parameters())
    before = everything(model, optimizer)
    with pytest.raises(InvalidInput, match=named):
        pollard.sparse_training(model, optimizer, name, **{"density": 0.2, "steps": 30, "storage": storage, **options})
    assert same(before, everything(model, optimizer))


def test_an_optimizer_of_something_else_is_refused():
    model = network()
    optimizer = optim.SGD(model[0].parameters(), 0.1)
    before = everything(model, optimizer)
    with pytest.raises(InvalidInput, match="'2'"):
        pollard.rigl(model, optimizer, density=0.2, steps=30)
    assert same(before, everything(model, optimizer))
    sparse = pollard.rigl(model, optimizer, density=0.2, steps=30, every=5, layers="0")
    assert list(sparse.weights) == ["0"]
    with pytest.raises(InvalidInput, match="'0'"):
        Sparsifier(model, optim.SGD(model[2].parameters(), 0.1), METHODS["rigl"](0.2, 30, every=5))


def until_due(name, optimizer=None, storage="compressed"):
    """A sparsifier whose next step has an update."""
    model = network()
    made = optimizer(model.parameters()) if optimizer else optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = pollard.sparse_training(model, made, name, density=0.2, steps=30, storage=storage, **due_in(name))
    while not sparse.method.due(sparse.steps + 1):
        made.zero_grad()
        learn(model)
        sparse.step()
    made.zero_grad()
    return model, made, sparse


def refused(model, optimizer, sparse, match, **step):
    before, steps = everything(model, optimizer), sparse.steps
    with pytest.raises(InvalidInput, match=match):
        sparse.step(**step)
    assert same(before, everything(model, optimizer))
    assert (sparse.steps, sparse.updates) == (steps, 0)


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("name", MOVING)
def test_nan_in_an_update_moves_nothing_and_training_goes_on(name, storage):
    model, optimizer, sparse = until_due(name, storage=storage)
    learn(model, torch.where(X > 2, torch.nan, X))
    refused(model, optimizer, sparse, "layer '0' that are not finite")
    optimizer.zero_grad()
    learn(model)
    sparse.step()
    assert sparse.updates == 1


@pytest.mark.parametrize("name", ["rigl", "snfs", "mest", "gse", "granet", "srigl"])
def test_an_update_without_backward_says_so(name):
    model, optimizer, sparse = until_due(name)
    refused(model, optimizer, sparse, "backward")
    model(X)
    refused(model, optimizer, sparse, "backward")
    learn(model)
    sparse.step()
    assert sparse.updates == 1


def test_a_layer_that_a_step_does_not_use_counts_as_one_without_gradient():
    model, _, sparse = until_due("rigl")
    nn.functional.cross_entropy(model[2](torch.randn(32, 40)), Y).backward()
    sparse.step()
    assert sparse.updates == 1


def test_a_gradient_that_came_from_no_pass_is_refused():
    model, optimizer, sparse = until_due("rigl")
    model[0].values.grad = torch.ones_like(model[0].values)
    refused(model, optimizer, sparse, "layer '0' from no pass")


@pytest.mark.parametrize("name", ["set", "rigl", "gmp"])
def test_lbfgs_cannot_follow_and_is_told_so(name):
    model = network()
    sparse = pollard.sparse_training(
        model, optim.LBFGS(model.parameters(), 0.01, max_iter=2), name, density=0.2, steps=30, every=3
    )

    def closure():
        sparse.optimizer.zero_grad()
        return learn(model)

    while not sparse.method.due(sparse.steps + 1):
        before = model[0].values.detach().clone()
        sparse.step(closure)
        assert not torch.equal(before, model[0].values)  # it steps what is kept now, not what it was made with
    refused(model, sparse.optimizer, sparse, "LBFGS with state", closure=closure)


def test_an_optimizer_of_rows_and_columns_cannot_follow_and_is_told_so():
    model, optimizer, sparse = until_due("set", lambda each: optim.Adafactor(each, 0.01), "masked")
    learn(model)
    refused(model, optimizer, sparse, "Adafactor with state")


def test_sparse_momentum_asks_for_momentum():
    model, optimizer, sparse = until_due("sparse-momentum", lambda each: optim.SGD(each, 0.1))
    learn(model)
    refused(model, optimizer, sparse, "SGD without momentum")


def test_the_state_of_another_method_is_refused():
    _, _, sparse = until_due("rigl")
    _, _, other = until_due("set")
    with pytest.raises(StoreError, match="'set'"):
        sparse.load_state_dict(other.state_dict())


@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_a_rule_that_fails_in_the_last_layer_moves_no_other(storage):
    model = network()
    optimizer = optim.Adam(model.parameters())
    sparse = pollard.sparse_training(model, optimizer, "rigl", density=0.5, steps=100, every=2, storage=storage)
    learn(model)
    sparse.step()
    learn(model)
    grow, before = sparse.method.grow, everything(model, optimizer)
    topologies = [weight.topology for weight in sparse.weights.values()]

    def failing(change, stays, count):
        if change.last:
            raise InvalidInput("no room", "some", "Think again.")
        return grow(change, stays, count)

    sparse.method = dataclasses.replace(sparse.method, grow=failing)
    with pytest.raises(InvalidInput, match="no room"):
        sparse.step()
    assert same(before, everything(model, optimizer))
    assert topologies == [weight.topology for weight in sparse.weights.values()]
