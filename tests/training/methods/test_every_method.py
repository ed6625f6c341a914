"""What every method of sparse training must do. A method joins these tests by being a member of METHODS."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim

import pollard
from pollard.pruning.allocation import ALLOCATIONS, whole_grains
from pollard.pruning.budget import Layer
from pollard.pruning.citations import citations
from pollard.training import schedules
from pollard.training.methods import METHODS
from pollard.training.methods.mest import mest
from pollard.training.methods.method import method_name
from pollard.training.weights import state_entries

STEPS = 40
# Methods whose updates are not laid out by every=.
UNSTEADY = {"static", "dsd"}
MOVING = sorted(set(METHODS) - {"static"})
# Densities that move, or counts that layers exchange or round: what is held is not what each layer had.
RESIZING = {"gmp", "dsd", "acdc", "granet", "top-kast", "sparse-momentum", "srigl"}
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


@pytest.mark.parametrize("soft", [False, True])
def test_mest_has_one_density_for_all_layers(soft):
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 10))
    start = {"density": 0.25, "steps": 64, "margin": 0.05, "soft": soft}
    pollard.mest(model, optim.SGD(model.parameters(), 0.1), **start)
    assert [model[0].density, model[2].density] == [0.3 if soft else 0.25] * 2


# ------------------------------------------------------------------------------------------------- names and schedules


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_has_a_name_a_call_and_a_source(name):
    made = METHODS[name](0.1, 1000)
    assert made.name == name == method_name(METHODS[name])
    assert getattr(pollard, METHODS[name].__name__).__name__ == METHODS[name].__name__
    assert (made.cite in citations()) == (name != "static")
    assert "Source: " in METHODS[name].__doc__ or name == "static"


@given(st.sampled_from(sorted(METHODS)), st.integers(12, 700), st.integers(1, 90))
def test_updates_are_due_when_the_next_one_is_said_to_be(name, steps, every):
    made = METHODS[name](0.1, steps, **({} if name in UNSTEADY else {"every": every}))
    told, step = [], 0
    while (step := made.next_due(step)) is not None:
        told.append(step)
    assert told == [step for step in range(3 * steps) if made.due(step)]
    assert all(1 <= step <= steps for step in told)
    assert all(0 <= made.fraction(step) <= 1 for step in told)
    if made.window:
        assert all(made.watches(step) for step in told)
        assert not any(made.watches(step) for step in range(told[-1] + 1 if told else 0, steps + 2))


@given(st.sampled_from(["gmp", "granet", "top-kast"]), st.integers(12, 700), st.integers(1, 900))
def test_the_last_update_reaches_the_density_asked_for(name, steps, every):
    made = METHODS[name](0.1, steps, every=every)
    last = max(step for step in range(steps + 1) if made.due(step))
    assert made.density(last) == made.density(10 * steps) == 0.1


@given(st.integers(12, 700), st.integers(1, 900), st.integers(1, 100))
def test_the_margin_of_mest_is_gone_at_the_end(steps, every, percent):
    made = mest(percent / 100, steps, every=every, soft=True)
    last = max(step for step in range(steps + 1) if made.due(step))
    assert made.density(last) == percent / 100
    assert made.fraction(last) == 0.0


# --------------------------------------------------------------------------------------------------------------- counts


def expected_counts(sparse, held):
    """Weights of each layer after the update of this step, as the method's targets say."""
    method = sparse.method
    if method.density is None:
        return held
    density = method.density(sparse.steps)
    layers = {name: Layer(weight.topology.shape, weight.topology.pattern) for name, weight in sparse.weights.items()}
    return list(whole_grains(layers, ALLOCATIONS[method.allocation](layers, density), density).values())


# SRigL has rows of one length, so no grains of several rows.
@pytest.mark.parametrize(
    "name, pattern", [(name, pattern) for name in MOVING for pattern in ("unstructured", "v4")[: 1 + (name != "srigl")]]
)
def test_counts_are_exact_after_every_update(name, pattern):
    options = {"allocation": "erk"} if name in {"acdc", "granet"} else {}
    sparse = begin(name, pattern=pattern, **options)
    held = [topology.grains for topology in topologies_of(sparse)]
    before = topologies_of(sparse)
    for step in range(1, STEPS + 1):
        learn(sparse)
        grains = [topology.grains for topology in topologies_of(sparse)]
        if not sparse.method.due(step):
            assert all(one.same_as(other) for one, other in zip(topologies_of(sparse), before, strict=True))
        elif name == "sparse-momentum":
            assert sum(grains) == sum(held)
        elif name == "srigl":
            for topology, count in zip(topologies_of(sparse), held, strict=True):
                living = int((topology.fan_in() > 0).sum())
                assert topology.nnz == count // living * living
        else:
            assert grains == expected_counts(sparse, held)
        before = topologies_of(sparse)
    assert sparse.updates == sum(sparse.method.due(step) for step in range(STEPS + 1)) > 0


def test_a_ranking_over_all_layers_keeps_the_exact_number_in_all():
    for name in ("acdc", "gmp", "granet"):
        sparse = begin(name, allocation="global")
        total = sum(topology.shape[0] * topology.shape[1] for topology in topologies_of(sparse))
        for step in range(1, STEPS + 1):
            learn(sparse)
            if sparse.method.due(step):
                kept = sum(topology.nnz for topology in topologies_of(sparse))
                assert kept == round(sparse.method.density(step) * total)


@pytest.mark.parametrize("name", sorted(set(METHODS) - RESIZING - {"static"}))
@pytest.mark.parametrize("curve", [schedules.linear(0.1, 30, end=0.6), schedules.cubic(0.6, 30, end=0.1)])
def test_any_method_takes_a_density_that_moves(name, curve):
    model = network()
    method = replace(METHODS[name](curve(0), STEPS, every=5), density=curve, allocation="uniform")
    sparse = pollard.sparse_training(model, OPTIMIZERS["adam"](model.parameters()), method)
    for step in range(1, STEPS + 1):
        learn(sparse)
        if sparse.method.due(step):
            assert [each.nnz for each in topologies_of(sparse)] == expected_counts(sparse, None)


# ----------------------------------------------------------------------------------------------- values and state, moving


def spread(topology, entries):
    """Entries `(nnz,)` at their places in a flat dense tensor, NaN elsewhere."""
    dense = torch.full((topology.shape[0] * topology.shape[1],), torch.nan, dtype=torch.float64)
    dense[topology.weight_positions()] = entries
    return dense


def snapshot(weight):
    held = {"value": weight.values(), **dict(state_entries(weight))}
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


# ------------------------------------------------------------------------------------------------------ things around it


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
