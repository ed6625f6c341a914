"""Which positions a topology keeps: the kernel, against binary search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import TopologyError
from pollard.formats.topology import Topology
from pollard.kernels.finding import find, find_slowly
from strategies import topologies


@given(topologies(smallest=1), st.data())
def test_the_kernel_finds_what_binary_search_finds(topology, data):
    total = topology.groups * topology.shape[1]
    asked = torch.tensor(sorted(data.draw(st.sets(st.integers(0, total - 1)))), dtype=torch.int64)
    found = find(topology, asked)
    assert found.dtype == torch.int32
    if topology.grains:
        assert torch.equal(found, find_slowly(topology, asked))
    kept = {position: grain for grain, position in enumerate(topology.positions().tolist())}
    assert found.tolist() == [kept.get(position, -1) for position in asked.tolist()]


@pytest.mark.parametrize("threads", [1, 2])
def test_it_finds_in_large_layers(threads, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    topology = Topology.random((300, 500), 0.1, generator=generator)
    asked = Topology.random((300, 500), 0.3, generator=generator).positions()
    found = find(topology, asked)
    monkeypatch.setenv("POLLARD_TARGET", "reference")
    assert torch.equal(found, find(topology, asked))
    torch.set_num_threads(before)


@pytest.mark.parametrize("positions", [[1, 0], [0, 0], [-1], [6]])
def test_positions_out_of_order_or_range_are_refused(positions):
    with pytest.raises(TopologyError):
        find(Topology.full((2, 3)), torch.tensor(positions))
