from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput, TopologyError
from pollard.formats.rewiring import checked_flags
from pollard.formats.topology import Topology
from strategies import changes, topologies


@given(st.data())
def test_what_stays_and_what_comes_make_the_new_topology(data):
    here = data.draw(topologies())
    stays, grown = data.draw(changes(here))
    there, source = here.rewired(stays, grown)
    expected = sorted(here.positions(stays).tolist() + grown.tolist())
    assert there.positions().tolist() == expected
    assert (there.shape, there.pattern) == (here.shape, here.pattern)
    Topology(there.shape, there.pattern, there.row_pointers, there.columns)
    was = {position: index for index, position in enumerate(here.positions().tolist())}
    assert source.tolist() == [was.get(position, -1) for position in expected]
    assert source.dtype == there.columns.dtype == there.row_pointers.dtype == torch.int32


def test_a_grain_that_goes_and_comes_back_has_not_moved():
    here = Topology.full((2, 2))
    there, source = here.rewired(torch.tensor([True, False, False, True]), torch.tensor([1]))
    assert there.positions().tolist() == [0, 1, 3]
    assert source.tolist() == [0, 1, 3]


BAD = {
    "grown out of order": ([], [5, 1]),
    "grown from -1": ([], [-1]),
    "grown from 0 to 6": ([], [0, 6]),
    "position 2 both stays and grows": ([0, 1], [1, 2]),
}


@pytest.mark.parametrize("message", BAD)
def test_a_change_that_is_none_is_refused(message):
    kept, grown = (torch.tensor(array, dtype=torch.int64) for array in BAD[message])
    here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
    with pytest.raises(TopologyError, match=message):
        here.rewired(torch.zeros(3, dtype=torch.bool).index_fill(0, kept, True), grown)


def test_what_stays_is_flagged_and_what_comes_are_integers_on_the_cpu():
    here, none = Topology.full((2, 3)), torch.tensor([], dtype=torch.int64)
    for stays in (torch.ones(6), torch.ones(5, dtype=torch.bool), torch.ones(6, dtype=torch.bool, device="meta")):
        with pytest.raises(TopologyError, match=r"expected torch\.bool \(6,\) on the CPU"):
            here.rewired(stays, none)
    with pytest.raises(InvalidInput, match="grown on meta"):
        here.rewired(torch.zeros(6, dtype=torch.bool), none.to("meta"))


def test_flags_come_side_by_side_however_they_lay():
    # Kernels read them by address.
    wide = torch.tensor([True, False, False, True, True, True])
    for stays in (wide[::2], wide.view(2, 3).t().reshape(-1)[:3], wide[:1].expand(3)):
        flags = checked_flags(stays, 3)
        assert flags.flags.c_contiguous
        assert flags.tolist() == stays.tolist()


def test_positions_of_some_grains_are_a_part_of_all():
    here = Topology.random((300, 40), 0.2, "v4", generator=torch.Generator().manual_seed(0))
    only = torch.rand(here.grains) < 0.3
    assert torch.equal(here.positions(only), here.positions()[only])
