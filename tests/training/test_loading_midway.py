"""The best weights so far are loaded in the middle of training: layers, optimizer and Sparsifier agree, in whatever order."""

import copy
from itertools import permutations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import pollard
from pollard.errors import InvalidInput

X = torch.randn(16, 20, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 4
OPTIMIZERS = {"adam": lambda p: Adam(p, 1e-2), "momentum": lambda p: SGD(p, 0.1, momentum=0.9)}
METHODS = ("static", "rigl", "set_", "gmp", "mest")
# Of model, optimizer and Sparsifier; or the last two as one.
ORDERS = [*permutations(("model", "optimizer", "own")), ("model", "both"), ("both", "model")]


class Run:
    def __init__(self, method, optimizer, storage):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        options = {} if method == "static" else {"every": 5}
        start = getattr(pollard, method)
        self.sparse = start(self.model, self.optimizer, density=0.3, steps=60, storage=storage, **options)

    def go(self, steps):
        for _ in range(steps):
            self.sparse.zero_grad()
            nn.functional.cross_entropy(self.model(X), Y).backward()
            self.sparse.step()
        return self

    def states(self):
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "own": self.sparse.own_state_dict(),
                "both": self.sparse.state_dict(),
            }
        )

    def load(self, states, order):
        whose = {"model": self.model, "optimizer": self.optimizer, "own": self.sparse, "both": self.sparse}
        for name in order:
            whose[name].load_state_dict(copy.deepcopy(states[name]))
        return self

    def weights(self):
        return [layer.to_dense().weight.detach() for layer in (self.model[0], self.model[2])]


@pytest.mark.parametrize(
    ("storage", "optimizer"), [("compressed", "adam"), ("compressed", "momentum"), ("masked", "adam")]
)
@pytest.mark.parametrize("method", METHODS)
def test_in_any_order_training_goes_on_as_if_nothing_had_been(method, optimizer, storage):
    run = Run(method, optimizer, storage).go(12)
    states = run.states()
    expected = run.go(13).weights()
    for order in ORDERS:
        again = Run(method, optimizer, storage).go(23).load(states, order).go(13).weights()
        assert all(map(torch.equal, again, expected)), order


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_with_the_model_alone_the_state_follows_by_place(method, optimizer):
    # Where it stood in the dense weight: masked storage, which holds it there, says what is right.
    runs = []
    for storage in ("compressed", "masked"):
        run = Run(method, optimizer, storage).go(12)
        states = run.states()
        runs.append(run.go(11).load(states, ["model"]).go(1))
    ours, twin = runs
    for layer in (0, 2):
        values, weight = ours.model[layer].values, twin.model[layer].weight
        kept = twin.model[layer].mask
        for key, entry in ours.optimizer.state[values].items():
            if entry.dim():
                dense = twin.optimizer.state[weight][key]
                torch.testing.assert_close(entry, dense[kept], rtol=1e-4, atol=1e-7)
                assert not dense[~kept].any()
    torch.testing.assert_close(ours.go(12).weights(), twin.go(12).weights(), rtol=1e-3, atol=1e-5)


def test_what_is_dropped_and_comes_back_by_loading_starts_from_zero_state():
    run = Run("set_", "momentum", "compressed").go(12)
    before = run.model[0].topology
    states = run.states()
    run.go(11)
    now, held = run.model[0].topology, run.optimizer.state[run.model[0].values]["momentum_buffer"].clone()
    run.load(states, ["model"])
    run.sparse._follow()
    after = run.optimizer.state[run.model[0].values]["momentum_buffer"]
    change = now.difference(before)
    assert len(change.grown) > 0
    assert not after[change.grown].any()
    assert torch.equal(after[change.kept_there], held[change.kept_here])


@pytest.mark.parametrize("alone", ["own", "both"])
def test_a_sparsifier_of_another_moment_than_the_model_says_so(alone):
    run = Run("rigl", "adam", "compressed").go(12)
    states = run.states()
    run.go(11).load(states, [alone])
    before = run.weights()
    with pytest.raises(
        InvalidInput, match=r"layer '0' kept other weights .* Load the model's state of that moment too"
    ):
        run.go(1)
    assert all(map(torch.equal, run.weights(), before))
    run.load(states, ["model"]).go(6)


def test_a_state_from_before_topologies_were_named_is_read():
    run = Run("rigl", "adam", "compressed").go(12)
    states = run.states()
    del states["own"]["topologies"]
    expected = run.go(13).weights()
    again = Run("rigl", "adam", "compressed").go(3).load(states, ["model", "optimizer", "own"]).go(13)
    assert all(map(torch.equal, again.weights(), expected))
