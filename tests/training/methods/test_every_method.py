"""What every method of sparse training must do. A method joins these tests by being a member of METHODS."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, optim

import pollard
from learning import MOVING, OPTIMIZERS, STEPS, UNSTEADY, begin, learn, network, topologies_of
from pollard.pruning.allocation import ALLOCATIONS, whole_grains
from pollard.pruning.budget import Layer
from pollard.pruning.citations import citations
from pollard.training import schedules
from pollard.training.methods import METHODS
from pollard.training.methods.mest import mest
from pollard.training.methods.method import method_name

# Densities that move, or counts that layers exchange or round: what is held is not what each layer had.
RESIZING = {"gmp", "dsd", "acdc", "granet", "top-kast", "sparse-momentum", "srigl"}


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
