"""What every criterion must do, whoever wrote it: members join by existing."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from networks import BATCH, generator, lenet, noisy, same
from pollard.pruning import ALLOCATIONS, CRITERIA, prune
from pollard.pruning.scoring import Scoring

FEW = 3  # rounds: enough to be in rounds, whatever the criterion's own number


def rounds_of(criterion):
    return min(CRITERIA[criterion].rounds, FEW)


@pytest.mark.filterwarnings("ignore::pollard.errors.ScoresTie")
@given(
    st.sampled_from(sorted(CRITERIA)),
    st.sampled_from(sorted(ALLOCATIONS)),
    st.sampled_from(["unstructured", "v2", "v4"]),
    st.floats(0.05, 1),
)
def test_every_member_is_exact_and_keeps_its_pattern(criterion, allocation, pattern, density):
    model = lenet()
    plan = prune(
        model,
        criterion,
        density,
        BATCH,
        allocation=allocation,
        pattern=pattern,
        generator=generator(),
        min_density=0.01,
        rounds=rounds_of(criterion),
    )
    rows = plan["0"].pattern.rows
    assert plan.nnz == rows * round(density * plan.weights / rows)
    assert (plan.criterion, plan.allocation, plan.asked) == (criterion, allocation, density)
    for name in plan:
        mask = plan.mask(name)
        assert mask.shape == model.get_submodule(name).weight.shape
        assert int(mask.sum()) == plan[name].nnz
        groups = mask.view(-1, rows, mask.shape[1])
        assert torch.equal(groups.any(1), groups.all(1))


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_the_same_call_gives_the_same_plan(criterion):
    plans = [
        prune(lenet(), criterion, 0.2, BATCH, generator=generator(), rounds=rounds_of(criterion)) for _ in range(2)
    ]
    assert same(*plans)
    assert all(torch.equal(plans[0].updated[name], plans[1].updated[name]) for name in plans[0].updated)


@pytest.mark.parametrize(
    "criterion", sorted(name for name, member in CRITERIA.items() if member.rounds == 1 and member.solve is None)
)
def test_what_one_round_keeps_is_nested_as_density_grows(criterion):
    plans = [
        prune(lenet(), criterion, density, BATCH, generator=generator(), min_density=0.01)
        for density in [0.05, 0.1, 0.11, 0.4, 0.9, 1.0]
    ]
    for fewer, more in pairwise(plans):
        assert all(not (fewer.mask(name) & ~more.mask(name)).any() for name in fewer)


@pytest.mark.filterwarnings("ignore::pollard.errors.ScoresTie")
@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_what_an_earlier_plan_dropped_stays_away(criterion, pattern):
    model = lenet()
    # Random and lopsided: some rows, and some blocks of columns, have less left than their even share.
    earlier = prune(model, "random", 0.4, pattern=pattern, allocation="global", generator=generator())
    # Rounds prune within what the round before has left, too.
    for rounds in (1, 2):
        plan = prune(
            model, criterion, 0.3, BATCH, pattern=pattern, generator=generator(), within=earlier, rounds=rounds
        )
        rows = earlier["0"].pattern.rows
        assert plan.nnz == rows * round(0.3 * plan.weights / rows)
        assert all(not (plan.mask(name) & ~earlier.mask(name)).any() for name in plan)
        assert all(len(values) == plan[name].nnz for name, values in plan.updated.items())


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_no_criterion_leaves_a_trace_in_a_network_with_batch_norm_and_dropout(criterion, mode):
    model = noisy().train()
    model[1].eval()
    before = copy.deepcopy(model)
    random_state = torch.get_rng_state()
    plan = prune(
        model,
        criterion,
        0.5,
        BATCH,
        generator=generator(),
        scoring=Scoring(mode=mode, chunk_size=16),
        rounds=rounds_of(criterion),
    )
    assert plan.density == 0.5
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_says_what_it_is(criterion):
    assert CRITERIA[criterion].__doc__
    assert CRITERIA[criterion].name == criterion
