"""What is stepped past a Sparsifier, past the end, or without decay, is told."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

import pollard
from pollard.errors import NoDecay, NothingMoves, SteppedPast
from pollard.training import strangers


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.LayerNorm(30), nn.Linear(30, 4))


def train(model, step, times):
    for _ in range(times):
        model.zero_grad()
        model(torch.randn(6, 20)).square().mean().backward()
        step()


def started(method=pollard.rigl, **options):
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    return model, optimizer, method(model, optimizer, density=0.3, steps=100, **options)


def test_an_optimizer_of_somebody_else_that_steps_the_layers():
    model, _, sparse = started(every=10)
    other = AdamW(model.parameters())
    train(model, other.step, 1)
    with pytest.warns(SteppedPast, match=r"another optimizer, AdamW, steps the layers .* waits for rigl"):
        train(model, other.step, 1)
    # Once.
    train(model, other.step, 3)
    assert sparse.steps == 0


def test_an_optimizer_beside_that_steps_other_parameters():
    model, _, sparse = started(every=10)
    head = nn.Linear(4, 2)
    other = Adam([*head.parameters(), *model[2].parameters()])
    train(model, other.step, 4)
    train(model, sparse.step, 12)
    assert sparse.updates == 1


def test_taking_turns_is_nobodys_accident():
    # Two optimizers of one network, as in alternating training.
    model, _, sparse = started(every=10)
    other = Adam(model.parameters())
    for _ in range(4):
        train(model, other.step, 1)
        train(model, sparse.step, 1)


def test_who_waits_for_nothing_is_not_told():
    model, _, _ = started(pollard.static)
    train(model, AdamW(model.parameters()).step, 4)


class Around(torch.optim.Optimizer):
    """As accelerate's: a torch optimizer, with the hooks of one, around another."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        return self.inner.step()


def test_wrappers_before_and_behind_are_no_strangers():
    model = network()
    optimizer = Around(SGD(model.parameters(), 0.1))
    sparse = pollard.rigl(model, optimizer, density=0.3, steps=100, every=10)
    train(model, Around(sparse).step, 12)
    assert sparse.steps == 12


def test_a_sparsifier_that_is_gone_is_not_kept():
    gc.collect()
    before = len(strangers._watched)
    model, optimizer, sparse = started(every=10)
    assert len(strangers._watched) == before + 1
    del model, optimizer, sparse
    gc.collect()
    assert len(strangers._watched) == before


def test_copies_are_watched_too():
    model, optimizer, sparse = started(every=10)
    model, optimizer, sparse = copy.deepcopy((model, optimizer, sparse))
    with pytest.warns(SteppedPast, match="another optimizer, Adam"):
        train(model, Adam(model.parameters()).step, 2)


def test_training_past_the_steps_that_were_planned():
    model = network()
    sparse = pollard.set_(model, SGD(model.parameters(), 0.1), density=0.3, steps=10, every=3)
    train(model, sparse.step, 10)
    with pytest.warns(NothingMoves, match=r"step 11 is past the 10 that set was planned for"):
        train(model, sparse.step, 1)
    train(model, sparse.step, 3)


def test_a_fixed_topology_has_no_end():
    model = network()
    sparse = pollard.static(model, SGD(model.parameters(), 0.1), density=0.3, steps=3)
    train(model, sparse.step, 5)


def by_dimensions(model):
    return [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def test_values_that_a_rule_by_dimensions_passes_over():
    model = network()
    plan = pollard.prune(model, "magnitude", 0.3)
    pollard.sparsify_(model, plan, layers="0")
    with pytest.warns(NoDecay, match=r"the values of 1 sparse layers .* pollard\.decay_groups"):
        pollard.rigl(model, AdamW(by_dimensions(model)), steps=100, layers="0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse = pollard.rigl(model, AdamW(pollard.decay_groups(model, 0.1)), steps=100, layers="0")
    decays = {id(p): group["weight_decay"] for group in sparse.param_groups for p in group["params"]}
    assert [decays[id(p)] for p in (model[0].values, model[3].weight)] == [0.1, 0.1]
    assert [decays[id(p)] for p in (model[0].bias, model[2].weight, model[2].bias)] == [0.0, 0.0, 0.0]


def test_the_same_rule_before_the_layers_are_sparse_decays_them():
    model = network()
    sparse = pollard.rigl(model, AdamW(by_dimensions(model)), density=0.3, steps=100)
    assert any(p is model[0].values for p in sparse.param_groups[0]["params"])


def test_no_decay_at_all_is_no_mistake():
    model = network()
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3))
    pollard.rigl(model, SGD(model.parameters(), 0.1), density=0.3, steps=100)
