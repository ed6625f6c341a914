"""What loops do around a method: schedulers, clipping, closures, checkpoints, copies, compilers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim

import pollard
from learning import OPTIMIZERS, STEPS, begin, examples, learn, network, options_of, topologies_of
from pollard.training.methods import METHODS


@pytest.mark.parametrize("name", sorted(METHODS))
def test_schedulers_clipping_and_autocast_work(name):
    model = network(torch.float32)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    early = optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    sparse = pollard.sparse_training(model, optimizer, name, density=0.2, steps=STEPS, **options_of(name))
    x, y = examples(torch.float32)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        sparse.step()
        early.step()
    assert losses[-1] < losses[0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**STEPS)
    assert set(sparse.metrics()) == {
        "density",
        "model_density",
        "explored_rate",
        "flips",
        "dead_neurons",
        "training_flops",
        "inference_flops",
    }


@pytest.mark.parametrize("name", ["rigl", "gse"])
def test_clipping_does_not_change_what_grows(name):
    topologies = []
    for norm in (1e9, 1e-3):
        sparse = begin(name)
        sparse.optimizer.param_groups[0]["lr"] = 0.0
        learn(sparse, 5, lambda s=sparse, n=norm: nn.utils.clip_grad_norm_(s.model.parameters(), n))
        topologies.append(topologies_of(sparse))
    assert all(one.same_as(other) for one, other in zip(*topologies, strict=True))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_closure_is_the_same_step(name):
    results = []
    for closed in (False, True):
        sparse = begin(name)
        x, y = examples()

        def closure(sparse=sparse, x=x, y=y):
            sparse.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(sparse.model(x), y)
            loss.backward()
            return loss.detach()

        for _ in range(20):
            if closed:
                assert float(sparse.step(closure)) > 0
            else:
                closure()
                sparse.step()
        results.append([weight.values().clone() for weight in sparse.weights.values()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("at", [3, 12, 27])
def test_saved_and_loaded_it_goes_on_bit_for_bit(name, optimizer, at, tmp_path):
    sparse = begin(name, optimizer)
    learn(sparse, at)
    parts = (sparse.model, sparse.optimizer, sparse)
    torch.save([part.state_dict() for part in parts], tmp_path / "half.pt")
    learn(sparse, STEPS - at)
    again = begin(name, optimizer)
    loaded = torch.load(tmp_path / "half.pt")
    for part, state in zip((again.model, again.optimizer, again), loaded, strict=True):
        part.load_state_dict(state)
    learn(again, STEPS - at)
    for one, other in zip(sparse.weights.values(), again.weights.values(), strict=True):
        assert one.topology.same_as(other.topology)
        assert torch.equal(one.values(), other.values())
    assert sparse.metrics() == again.metrics()


def test_a_sparsifier_can_be_copied_with_what_it_trains():
    sparse = begin("rigl")
    learn(sparse, 7)
    twin = copy.deepcopy(sparse)
    learn(sparse, 10)
    learn(twin, 10)
    for one, other in zip(sparse.weights.values(), twin.weights.values(), strict=True):
        assert one.topology.same_as(other.topology)
        assert torch.equal(one.values(), other.values())


# Torch's compiler looks at gradients of inner tensors where it goes on after a hook, and warns of that itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_compiled_model_goes_the_same_way(name):
    torch.compiler.reset()
    eager, compiled = begin(name), begin(name)
    forwards = eager.model, torch.compile(compiled.model, backend="aot_eager")
    x, y = examples()
    for _ in range(STEPS // 2):
        for sparse, forward in zip((eager, compiled), forwards, strict=True):
            sparse.optimizer.zero_grad()
            nn.functional.cross_entropy(forward(x), y).backward()
            sparse.step()
    assert compiled.updates == eager.updates
    for one, other in zip(topologies_of(eager), topologies_of(compiled), strict=True):
        assert one.same_as(other)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_nothing_is_watched_once_no_update_comes(name):
    sparse = begin(name)
    learn(sparse, STEPS)
    assert not any(layer._forward_hooks for layer in sparse.model)
