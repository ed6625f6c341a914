"""Which grains of a block may be among the best: the kernel against masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.errors import TopologyError
from pollard.formats.topology import Topology
from pollard.kernels.indices.choosing import choose, choose_slowly
from strategies import seeds, topologies


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=seeds)
def test_the_kernel_lists_what_masks_leave(target, data, seed):
    here = data.draw(topologies())
    torch.set_num_threads(data.draw(st.sampled_from([1, 3])))
    generator = torch.Generator().manual_seed(seed)
    stays = torch.rand(here.grains, generator=generator) < 0.5
    first = data.draw(st.integers(0, here.groups))
    last = data.draw(st.integers(first, here.groups))
    # Few different scores, so that many are at the bound.
    scores = torch.randint(4, (last - first, here.width), generator=generator).float()
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    bound = data.draw(st.sampled_from([-1.0, 0.0, 1.0, 5.0]))
    slow = choose_slowly(here, stays.numpy(), first, scores.to(dtype), bound)
    fast = choose(here, stays, first, scores.to(dtype), bound)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(fast, slow, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("width", [1000, 1003])
def test_large_blocks_are_gone_through_alike_by_any_number_of_threads(target, threads, width):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    here = Topology.random((300, width), 0.2, generator=generator)
    stays = torch.rand(here.grains, generator=generator) < 0.7
    scores = torch.rand(120, width, generator=generator)
    scores[3, 5] = torch.nan
    for bound in (-1.0, 0.5, 0.99):
        slow = choose_slowly(here, stays.numpy(), 100, scores.clone(), bound)
        fast = choose(here, stays, 100, scores.clone(), bound)
        assert all(torch.equal(one, other) for one, other in zip(fast, slow, strict=True))


def test_what_stays_is_flagged(target):
    with pytest.raises(TopologyError, match="stays of"):
        choose(Topology.full((2, 2)), torch.tensor([0, 1]), 0, torch.ones(2, 2), 0.0)
