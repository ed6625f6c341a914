"""What is drawn at random follows torch's seed, as `prune` does, unless a seed is given; what goes on draws what it would have."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pollard
from pollard.training.methods import METHODS
from pollard.training.sparsifier import Sparsifier

X, Y = torch.randn(32, 20, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4


def dense():
    # The same weights in every run: what differs is what the method draws.
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(torch.randn(each.shape, generator=draw) / 5)
    return model


def started(torch_seed, method="set", **options):
    """Made sparse, and trained, under a seed of torch."""
    model = dense()
    torch.manual_seed(torch_seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return pollard.sparse_training(model, optimizer, method, density=0.3, steps=40, every=5, **options)


def go(sparse, steps):
    for _ in range(steps):
        sparse.zero_grad()
        nn.functional.cross_entropy(sparse.model(X), Y).backward()
        sparse.step()
    return sparse


def kept(sparse):
    return [weight.topology.fingerprint for weight in sparse.weights.values()]


@pytest.mark.parametrize("method", ["set", "rigl", "srigl", "top-kast", "mest"])
def test_repeats_under_other_seeds_of_torch_start_and_move_otherwise(method):
    first, again, other = (started(seed, method) for seed in (1, 1, 2))
    assert kept(first) == kept(again) != kept(other)
    first, again, other = (go(each, 12) for each in (first, again, other))
    assert kept(first) == kept(again) != kept(other)


def test_layers_that_are_sparse_already_move_by_torchs_seed():
    found = []
    for seed in (1, 1, 2):
        model = dense()
        pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3))
        torch.manual_seed(seed)
        sparse = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), METHODS["set"](0.3, 40, every=5))
        found.append((kept(sparse), kept(go(sparse, 12))))
    assert found[0] == found[1]
    assert found[0][0] == found[2][0]
    assert found[0][1] != found[2][1]


def test_the_second_of_two_draws_otherwise():
    first = started(1)
    model = dense()
    second = pollard.set_(model, torch.optim.SGD(model.parameters(), 0.1), density=0.3, steps=40, every=5)
    assert kept(first) != kept(second)


def test_a_seed_fixes_it_and_leaves_torchs_generator_alone():
    first, other = (go(started(seed, seed=7), 12) for seed in (1, 2))
    assert kept(first) == kept(other)
    assert kept(first) != kept(go(started(1, seed=8), 12))
    started(1, seed=7)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("given", [{}, {"seed": 9}])
def test_what_goes_on_draws_what_it_would_have(given):
    run = go(started(1), 7)
    states = copy.deepcopy([each.state_dict() for each in (run.model, run)])
    again = started(2, **given)
    for each, state in zip((again.model, again), states, strict=True):
        each.load_state_dict(state)
    assert kept(go(run, 12)) == kept(go(again, 12))


@pytest.mark.parametrize("seed", [0, 9])
def test_a_state_of_before_it_held_a_seed_goes_on_by_the_one_asked_for(seed):
    run = go(started(1, seed=seed), 7)
    model, optimizer, own = copy.deepcopy(
        [each.state_dict() for each in (run.model, run.optimizer)] + [run.own_state_dict()]
    )
    del own["seed"]
    again = started(2, seed=seed)
    for each, state in ((again.model, model), (again.optimizer, optimizer), (again, own)):
        each.load_state_dict(state)
    assert kept(go(run, 12)) == kept(go(again, 12))
