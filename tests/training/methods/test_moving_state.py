"""Where weights go and come, values and optimizer state move with them, whatever the method and the optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pollard
from learning import MOVING, OPTIMIZERS, STEPS, begin, examples, learn, network


def spread(topology, entries):
    """Entries `(nnz,)` at their places in a flat dense tensor, NaN elsewhere."""
    dense = torch.full((topology.shape[0] * topology.shape[1],), torch.nan, dtype=torch.float64)
    dense[topology.weight_positions()] = entries
    return dense


def snapshot(weight):
    state = {
        key: weight.kept_of(entry)
        for state in weight.states()
        for key, entry in state.items()
        if isinstance(entry, torch.Tensor) and entry.dim() > 0
    }
    held = {"value": weight.values(), **state}
    return {key: spread(weight.topology, entry.clone()) for key, entry in held.items()}


def watch_moves(sparse):
    """Of each move: which weight, what it held just before, and what just after."""
    seen = []

    def spy(weight, move):
        def moving(*args):
            before = snapshot(weight)
            move(*args)
            seen.append((weight.name, before, snapshot(weight)))

        return moving

    for weight in sparse.weights.values():
        weight.move = spy(weight, weight.move)
    return seen


def check_move(before, after, started):
    """What stays keeps all it had, bit for bit; what comes has zero state and starts as it should."""
    assert list(before) == list(after)
    was, now = ~before["value"].isnan(), ~after["value"].isnan()
    for key in after:
        assert torch.equal(before[key][was & now], after[key][was & now])
    grown = now & ~was
    for key in set(after) - {"value"}:
        assert not after[key][grown].any()
    started.append(after["value"][grown])


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["rigl", "set", "gmp", "dsd"])
def test_what_stays_keeps_value_and_state_and_what_comes_has_none(name, optimizer, storage):
    sparse = begin(name, optimizer, steps=20, storage=storage)
    moves, started = watch_moves(sparse), []
    learn(sparse, 20)
    assert moves
    per_weight = {"sgd": 1, "adagrad": 1, "asgd": 1, "adamw": 3, "rmsprop": 3}
    for _, before, after in moves:
        assert len(before) == 1 + per_weight.get(optimizer, 2) or sparse.method.instead_of_step
        check_move(before, after, started)
    values = torch.cat(started)
    if name == "set":
        assert values.abs().max() < 0.6
        assert values.std() == pytest.approx(0.1, rel=0.3)
    else:
        assert not values.any()


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_method_moves_values_and_state_together(name, optimizer):
    sparse = begin(name, optimizer)
    moves, started = watch_moves(sparse), []
    learn(sparse, STEPS)
    for _, before, after in moves:
        check_move(before, after, started)
    assert started
    assert name == "set" or not torch.cat(started).any()


def test_what_top_kast_remembers_comes_back_as_it_was():
    sparse = begin("top-kast", dense_memory=True)
    remembered = {name: weight.memory.clone().flatten() for name, weight in sparse.weights.items()}
    moves, came = watch_moves(sparse), 0
    learn(sparse, 35)
    for name, before, after in moves:
        was, now = before["value"], after["value"]
        remembered[name] = torch.where(was.isnan(), remembered[name], was)
        grown = was.isnan() & ~now.isnan()
        assert torch.equal(now[grown], remembered[name][grown])
        came += int(grown.sum())
    assert came


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_revives_what_is_dropped_in_masked_storage(optimizer):
    sparse = begin("rigl", optimizer, steps=50, storage="masked")
    for _ in range(50):
        learn(sparse)
        for weight in sparse.weights.values():
            outside = ~weight.layer.mask
            assert not weight.parameter.detach()[outside].any()


def test_masked_storage_clears_the_state_it_finds_outside_the_mask():
    model = network()
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.2), storage="masked")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    x, y = examples()
    with torch.no_grad():
        model[0].weight += 0.1  # what is dropped too; weight decay moves it, and momentum remembers it
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert optimizer.state[model[0].weight]["momentum_buffer"][~model[0].mask].any()
    sparse = pollard.sparse_training(model, optimizer, "set", steps=20, every=5)
    learn(sparse, 4)
    assert not model[0].weight.detach()[~model[0].mask].any()
