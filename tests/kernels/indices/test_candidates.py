"""Candidates for growth: the kernel against the twin that holds all draws at once, and both against their distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.errors import InvalidInput, TopologyError
from pollard.formats.topology import Topology
from pollard.kernels.indices.candidates import candidates
from strategies import grains, seeds, topologies


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=seeds)
def test_the_kernel_draws_what_its_twin_draws(data, seed):
    here = data.draw(topologies(of=grains))
    count = data.draw(st.integers(0, 60))
    groups, columns = (torch.rand(size, generator=seeded(seed + 1)).relu_() for size in (here.groups, here.width))
    if data.draw(st.booleans()):
        groups[: len(groups) // 2] = columns[1::2] = 0.0
    made = candidates(here, count, groups, columns, seeded(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLLARD_TARGET", "reference")
        assert made.same_as(candidates(here, count, groups, columns, seeded(seed)))
    Topology(made.shape, made.pattern, made.row_pointers, made.columns)
    assert not set(made.positions().tolist()) & set(here.positions().tolist())
    assert made.grains <= count


@pytest.mark.parametrize("shape", [(300, 2000), (70, 9000), (5000, 3)])
def test_many_draws_are_the_same_with_any_number_of_threads(target, shape):
    here = Topology.random(shape, 0.1, generator=seeded())
    groups, columns = torch.rand(shape[0]).square_(), torch.rand(shape[1]).square_()
    made = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made.append(candidates(here, here.grains, groups, columns, seeded(1)))
    monkey = pytest.MonkeyPatch()
    monkey.setenv("POLLARD_TARGET", "reference")
    made.append(candidates(here, here.grains, groups, columns, seeded(1)))
    monkey.undo()
    assert all(each.same_as(made[0]) for each in made)


def test_draws_follow_the_product_of_both_weights(target):
    here = Topology.from_positions((4, 5), "unstructured", torch.tensor([], dtype=torch.int64))
    groups, columns = torch.tensor([1.0, 0.0, 2.0, 5.0]), torch.tensor([3.0, 1.0, 0.0, 4.0, 0.5])
    share = torch.outer(groups, columns).flatten() / (groups.sum() * columns.sum())
    hits, rounds, draws = torch.zeros(20), 4000, 3
    generator = seeded(2)
    for _ in range(rounds):
        hits[candidates(here, draws, groups, columns, generator).positions()] += 1
    expected = 1 - (1 - share) ** draws
    deviation = (expected * (1 - expected) / rounds).sqrt()
    assert bool(((hits / rounds - expected).abs() <= 4.5 * deviation).all())


def test_where_nothing_weighs_all_are_alike(target):
    here = Topology.from_positions((2, 3), "unstructured", torch.tensor([4]))
    made = candidates(here, 500, torch.zeros(2), torch.zeros(3), seeded())
    assert made.positions().tolist() == [0, 1, 2, 3, 5]


def test_a_rounding_moves_few_candidates(target):
    here = Topology.random((400, 500), 0.1, generator=seeded())
    groups, columns = torch.rand(400, generator=seeded(1)), torch.rand(500, generator=seeded(2))
    made = candidates(here, here.grains, groups, columns, seeded(3))
    other = candidates(
        here, here.grains, groups * (1 + 1e-7), columns.flip(0).contiguous().flip(0) * (1 - 1e-7), seeded(3)
    )
    change = made.difference(other)
    assert len(change.dropped) + len(change.grown) <= 4


def test_what_does_not_fit_is_refused(target):
    here = Topology.full((2, 3))
    with pytest.raises(InvalidInput, match="Give one weight for each row group"):
        candidates(here, 1, torch.ones(3), torch.ones(3))
    with pytest.raises(InvalidInput, match="not finite"):
        candidates(here, 1, torch.tensor([1.0, torch.nan]), torch.ones(3))
    with pytest.raises(TopologyError):
        candidates(here, 1 << 31, torch.ones(2), torch.ones(3))


def test_a_row_with_half_of_all_is_drawn_alike_whatever_its_last_bit():
    here = Topology.from_positions((4, 50), "unstructured", torch.tensor([], dtype=torch.int64))
    exact = torch.tensor([1.5, 0.25, 0.75, 0.5], dtype=torch.float64)
    columns = torch.ones(50, dtype=torch.float64)
    for seed in range(20):
        drawn = [
            candidates(here, 30, weights, columns, torch.Generator().manual_seed(seed)).positions().tolist()
            for weights in (exact, exact * torch.tensor([1 + 1e-15, 1, 1, 1], dtype=torch.float64))
        ]
        assert drawn[0] == drawn[1]
