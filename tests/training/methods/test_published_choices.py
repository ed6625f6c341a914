"""The numbers that each method is published with, worked out by hand: when it updates, how much, at which density, at what cost."""

from __future__ import annotations

import pytest

from pollard.errors import InvalidInput
from pollard.training.methods import METHODS, drop, grow

# Of a method made for so many steps: every, start, end, and fractions and densities at some steps.
PLANS = {
    ("gmp", 0.1, 1000): ((75, 75, 750), {0: 0.0, 500: 0.0}, {0: 1.0, 375: 0.2125, 749: 0.1, 750: 0.1}),
    ("gmp", 0.1, 4000): ((100, 100, 3000), {}, {1500: 0.2125}),
    ("gmp", 0.2, 1000, "every=150 first=0.2 until=0.7 start_density=0.6"): (
        (150, 250, 700),
        {},
        {0: 0.6, 200: 0.6, 450: 0.25, 700: 0.2, 1000: 0.2},
    ),
    ("gmp", 0.2, 1000, "curve='linear'"): ((75, 75, 750), {}, {375: 0.6}),
    ("gmp", 0.1, 100, "every=1000"): ((75, 75, 75), {}, {75: 0.1}),
    ("dsd", 0.4, 300): ((100, 100, 200), {100: 0.0}, {0: 1.0, 99: 1.0, 100: 0.4, 199: 0.4, 200: 1.0, 300: 1.0}),
    ("dsd", 0.4, 300, "sparse_from=0.0 dense_from=1.0"): ((299, 1, 300), {}, {0: 1.0, 1: 0.4, 299: 0.4, 300: 1.0}),
    ("acdc", 0.1, 100): (
        (5, 10, 85),
        {10: 0.0},
        {0: 1.0, 9: 1.0, 10: 0.1, 14: 0.1, 15: 1.0, 74: 0.1, 75: 1.0, 84: 1.0, 85: 0.1, 100: 0.1},
    ),
    # ResNet-20 on CIFAR-10, whose last sparse phase begins at epoch 170 of 200.
    ("acdc", 0.1, 200, "every=20 dense_until=0.05"): (
        (20, 10, 170),
        {},
        {30: 1.0, 50: 0.1, 150: 1.0, 169: 1.0, 170: 0.1},
    ),
    ("acdc", 0.1, 10, "every=90"): ((90, 1, 1), {}, {0: 1.0, 1: 0.1}),
    ("granet", 0.1, 4000): ((300, 300, 3000), {0: 0.5, 1500: 0.25, 3000: 0.0}, {0: 0.5, 1500: 0.15, 3000: 0.1}),
    ("granet", 0.1, 40_000): ((1000, 1000, 30_000), {}, {}),
    ("granet", 0.7, 400, "every=70"): ((70, 20, 300), {}, {0: 0.7, 150: 0.7}),
    ("granet", 0.1, 100, "every=1000 fraction=0.2"): ((75, 75, 75), {0: 0.2}, {}),
    ("rigl", 0.1, 1000): ((75, 0, 750), {0: 0.3, 375: 0.15, 750: 0.0, 900: 0.0}, {}),
    ("rigl", 0.1, 2000, "fraction=0.4 until=0.5"): ((100, 0, 1000), {500: 0.2}, {}),
    ("srigl", 0.1, 2000): ((100, 0, 1500), {0: 0.3, 750: 0.15, 1500: 0.0}, {}),
    ("set", 0.1, 1000): ((10, 0, 999), {0: 0.3, 500: 0.3, 1000: 0.3}, {}),
    ("set", 0.1, 1000, "epoch=60 annealed=True"): ((60, 0, 999), {0: 0.3, 500: 0.15, 1000: 0.0}, {}),
    ("set", 0.1, 50, "fraction=0.1"): ((1, 0, 49), {7: 0.1}, {}),
    ("mest", 0.1, 1600): ((16, 16, 1200), {0: 0.2, 899: 0.2, 900: 0.1, 1199: 0.1, 1200: 0.0}, {}),
    ("mest", 0.1, 1600, "epoch=50"): ((250, 200, 1200), {}, {}),
    ("mest", 0.2, 1600, "every=100 margin=0.05"): ((100, 100, 1200), {0: 0.25, 900: 0.125}, {}),
    ("mest", 0.99, 1600): ((16, 16, 1200), {0: 0.01 / 0.99}, {}),
    ("mest", 0.01, 1600): ((16, 16, 1200), {0: 1.0}, {}),
    ("mest", 0.1, 1600, "soft=True"): (
        (16, 16, 1200),
        {0: 0.02 / 0.12, 900: 0.01 / 0.11, 1200: 0.0},
        {0: 0.12, 899: 0.12, 900: 0.11, 1199: 0.11, 1200: 0.1},
    ),
    ("mest", 0.1, 16, "every=100"): ((100, 12, 100), {}, {}),
    ("top-kast", 0.1, 1050): ((100, 0, 1000), {0: 0.15, 500: 0.075, 1000: 0.0}, {0: 0.2, 999: 0.2, 1000: 0.1}),
    ("top-kast", 0.1, 1000, "margin=0.3 fraction=0.4"): ((100, 0, 1000), {0: 0.3, 999: 0.0}, {0: 0.4, 1000: 0.1}),
    ("top-kast", 0.7, 50, "every=60"): ((50, 0, 50), {}, {0: 1.0, 50: 0.7}),
    ("gse", 0.1, 20_000): ((1000, 0, 12_000), {0: 0.2, 6000: 0.1, 12_000: 0.0}, {}),
    ("gse", 0.1, 1000, "until=0.5"): ((50, 0, 500), {250: 0.1}, {}),
    ("snfs", 0.1, 2000): ((100, 0, 1500), {0: 0.3, 750: 0.15}, {}),
    ("sparse-momentum", 0.1, 1000): ((10, 0, 999), {0: 0.5, 500: 0.25, 1000: 0.0}, {}),
    ("sparse-momentum", 0.1, 1000, "epoch=40"): ((40, 0, 999), {}, {}),
    ("static", 0.1, 1000): ((1, 0, 0), {}, {}),
}


@pytest.mark.parametrize("asked", PLANS, ids=lambda asked: " ".join(map(str, asked)))
def test_updates_fractions_and_densities_are_the_published_ones(asked):
    (every, start, end), fractions, densities = PLANS[asked]
    name, density, steps, *options = asked
    made = METHODS[name](density, steps, **eval(f"dict({','.join(options[0].split())})" if options else "{}"))
    assert (made.every, made.start, made.end) == (every, start, end)
    assert {step: made.fraction(step) for step in fractions} == pytest.approx(fractions, abs=1e-5)
    if made.density is None:
        assert not densities
    else:
        assert {step: made.density(step) for step in densities} == pytest.approx(densities, abs=1e-5)


# allocation, drop, grow, window, decay, instead_of_step, anew, scores_gradient
PIECES = {
    "gmp": ("uniform", drop.by_magnitude, grow.at_random, 0, 1.0, False, False, False),
    "acdc": ("global", drop.by_magnitude, grow.at_random, 0, 1.0, False, False, False),
    "dsd": ("uniform", drop.by_magnitude, grow.at_random, 0, 1.0, False, False, False),
    "granet": ("global", drop.by_magnitude, grow.by_gradient, 1, 1.0, False, False, False),
    "rigl": ("erk", drop.by_magnitude, grow.by_gradient, 1, 1.0, True, False, False),
    "srigl": ("erk", drop.by_magnitude, grow.by_gradient, 1, 1.0, True, False, False),
    "set": ("erk", drop.by_signed_magnitude, grow.at_random, 0, 1.0, False, False, False),
    "mest": ("uniform", None, grow.at_random, 0, 1.0, False, False, True),
    "top-kast": ("erk", drop.by_magnitude, grow.at_random, 0, 1.0, False, False, False),
    "gse": ("erk", drop.by_magnitude, grow.at_random, 1, 1.0, False, True, False),
    "snfs": ("erk", drop.by_magnitude, grow.by_gradient, 29, 0.9, True, False, False),
    "sparse-momentum": ("erk", drop.by_magnitude, grow.by_gradient, 10, 0.9, False, False, False),
    "static": ("erk", drop.by_magnitude, grow.at_random, 0, 1.0, False, False, False),
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_is_made_of_the_published_pieces(name):
    made = METHODS[name](0.1, 1000, **({"every": 50} if name == "snfs" else {}))
    rules = made.allocation, made.drop if PIECES[name][1] else None, made.grow
    assert (*rules, made.window, made.decay, made.instead_of_step, made.anew, made.scores_gradient) == PIECES[name]
    assert made.dense_memory is False


def test_options_choose_among_the_pieces():
    assert METHODS["set"](0.1, 100, signed=False).drop is drop.by_magnitude
    assert METHODS["gmp"](0.1, 100, allocation="global").allocation == "global"
    assert METHODS["granet"](0.1, 100, allocation="erk").allocation == "erk"
    for name in ("snfs", "sparse-momentum"):
        assert METHODS[name](0.1, 100, every=50, decay=0.5).window == 5  # 0.5 ** 5 is the first below a twentieth
        assert METHODS[name](0.1, 100, every=50, window=7, dense_memory=True).window == 7
        assert METHODS[name](0.1, 100, every=3).window == 3
        assert METHODS[name](0.1, 100, every=50, dense_memory=True).dense_memory
        assert METHODS[name](0.1, 100, every=50, decay=0.5).decay == 0.5
    kast = METHODS["top-kast"](0.1, 1000, margin=0.3, penalty=0.01, dense_memory=True)
    assert (kast.share, kast.reading, kast.penalty, kast.dense_memory) == (pytest.approx(0.25), 0.1, 0.01, True)
    assert METHODS["top-kast"](0.1, 1000).penalty == 1e-4
    assert METHODS["srigl"](0.1, 1000).salient == 0.3
    assert METHODS["gse"](0.1, 1000).candidates == 1.0
    assert METHODS["gse"](0.1, 1000).guide == "grabo"


# Multiply-adds of a step and of a step with an update, where the forward pass takes 10, and 100 if all were kept.
COSTS = {
    "rigl": (30, 120),
    "granet": (30, 120),
    "srigl": (30, 120),
    "set": (30, 30),
    "gse": (30, 40),
    "top-kast": (20, 20),
    "snfs": (30, 30 + 29 * 100),
    "sparse-momentum": (30, 30 + 10 * 100),
}


@pytest.mark.parametrize("name, costs", COSTS.items())
def test_steps_cost_what_papers_count(name, costs):
    made = METHODS[name](0.1, 1000, **({"every": 50} if name == "snfs" else {}))
    assert (made.step_cost(10.0, 100.0), made.update_cost(10.0, 100.0)) == pytest.approx(costs)


@pytest.mark.parametrize("name", ["snfs", "sparse-momentum"])
def test_a_dense_momentum_costs_a_dense_gradient_a_step(name):
    made = METHODS[name](0.1, 1000, dense_memory=True)
    assert (made.step_cost(10.0, 100.0), made.update_cost(10.0, 100.0)) == (120.0, 130.0)


def test_more_candidates_cost_more():
    assert METHODS["gse"](0.1, 1000, candidates=2.5).update_cost(10.0, 100.0) == 55.0


@pytest.mark.parametrize("phases", [(0.5, 0.5), (0.6, 0.4), (0.5, 1.01)])
def test_a_sparse_phase_lies_within_the_run(phases):
    with pytest.raises(InvalidInput, match="sparse phase"):
        METHODS["dsd"](0.4, 300, sparse_from=phases[0], dense_from=phases[1])


@pytest.mark.parametrize("phases", [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.01)])
def test_dense_phases_end_within_the_run(phases):
    with pytest.raises(InvalidInput, match="dense phases"):
        METHODS["acdc"](0.4, 300, dense_until=phases[0], sparse_from=phases[1])
