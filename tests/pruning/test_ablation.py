from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from networks import BATCH, generator, lenet, same
from pollard.pruning import prune, shuffle


@given(st.sampled_from(["unstructured", "v2", "v4", "b4x2", "2:4"]), st.floats(0.05, 0.9), st.integers(0, 2**31))
def test_a_shuffled_plan_keeps_counts_and_patterns_of_every_layer(pattern, density, seed):
    if ":" in pattern:
        density = 0.5
    plan = prune(lenet(), "snip", density, BATCH, pattern=pattern, min_density=0.02)
    shuffled = shuffle(plan, torch.Generator().manual_seed(seed))
    assert [topology.nnz for topology in shuffled.values()] == [topology.nnz for topology in plan.values()]
    assert [topology.pattern for topology in shuffled.values()] == [topology.pattern for topology in plan.values()]
    assert (shuffled.criterion, shuffled.allocation, shuffled.asked) == (plan.criterion, plan.allocation, plan.asked)


def test_places_are_drawn_from_the_generator():
    plan = prune(lenet(), "snip", 0.2, BATCH)
    assert same(shuffle(plan, generator()), shuffle(plan, generator()))
    assert not same(shuffle(plan, generator()), plan)


def test_every_place_is_as_likely():
    plan = prune(lenet(), "snip", 0.25, BATCH, layers="0")
    draw = generator()
    times = sum(shuffle(plan, draw).mask("0").double() for _ in range(400))
    assert abs(float(times.mean()) - 100) < 1e-9
    # Binomial of 400 draws at 1/4: a standard deviation of 8.7; five of them for the farthest of 288 places.
    assert float((times - 100).abs().max()) < 45
