from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from networks import BATCH, generator, lenet, same
from pollard import densify_, sparsify_
from pollard.errors import InvalidInput
from pollard.pruning import cross, prune, shuffle


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


def test_a_crossed_plan_keeps_its_places_and_takes_the_values_of_any_network():
    trained, initial = lenet(0), lenet(1)
    plan = prune(trained, "sparsegpt", 0.3, BATCH)
    for model in (trained, initial):
        crossed = cross(plan, model)
        assert same(crossed, plan)
        made = densify_(sparsify_(lenet(2), crossed))
        for name in plan:
            expected = torch.where(plan.mask(name), model.get_submodule(name).weight, 0.0)
            assert torch.equal(made.get_submodule(name).weight, expected)
    assert not torch.equal(cross(plan, trained).updated["0"], plan.updated["0"])


def test_the_mask_of_one_plan_takes_the_values_of_another():
    """What the other had dropped is zero there: as a network, that is what it is."""
    model = lenet()
    one, other = (prune(model, name, 0.4, BATCH) for name in ("magnitude", "sparsegpt"))
    crossed = cross(one, densify_(sparsify_(lenet(), other)))
    both = one.mask("0") & other.mask("0")
    weight = torch.zeros(24, 12).masked_scatter(one.mask("0"), crossed.updated["0"])
    assert torch.equal(weight[both], torch.zeros(24, 12).masked_scatter(other.mask("0"), other.updated["0"])[both])
    assert not weight[~other.mask("0")].any()


def test_values_of_a_network_of_other_layers_are_refused():
    plan = prune(lenet(), "magnitude", 0.3)
    with pytest.raises(InvalidInput, match="no dense weight in layer '0'"):
        cross(plan, torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(12, 24)))
