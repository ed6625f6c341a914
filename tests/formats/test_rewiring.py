from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput, TopologyError
from pollard.formats.topology import Topology
from strategies import changes, topologies


@given(st.data())
def test_what_stays_and_what_comes_make_the_new_topology(data):
    here = data.draw(topologies())
    kept, grown = data.draw(changes(here))
    there, source = here.rewired(kept, grown)
    expected = sorted(here.positions()[kept].tolist() + grown.tolist())
    assert there.positions().tolist() == expected
    assert (there.shape, there.pattern) == (here.shape, here.pattern)
    Topology(there.shape, there.pattern, there.row_pointers, there.columns)
    was = {position: index for index, position in enumerate(here.positions().tolist())}
    came = set(grown.tolist())
    assert source.tolist() == [-1 if position in came else was[position] for position in expected]
    assert source.dtype == there.columns.dtype == there.row_pointers.dtype == torch.int32


def test_a_dropped_grain_may_grow_again():
    here = Topology.full((2, 2))
    there, source = here.rewired(torch.tensor([0, 3]), torch.tensor([1]))
    assert there.positions().tolist() == [0, 1, 3]
    assert source.tolist() == [0, -1, 3]


BAD = {
    "kept out of order": ([1, 0], []),
    "kept out of order or repeated": ([1, 1], []),
    "kept from -1": ([-1, 0], []),
    "kept from 1 to 3": ([1, 3], []),
    "grown out of order": ([], [5, 1]),
    "grown from -1": ([], [-1]),
    "grown from 0 to 6": ([], [0, 6]),
    "position 2 both kept and grown": ([0, 1], [1, 2]),
}


@pytest.mark.parametrize("message", BAD)
def test_a_change_that_is_none_is_refused(message):
    kept, grown = (torch.tensor(array, dtype=torch.int64) for array in BAD[message])
    here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
    with pytest.raises(TopologyError, match=message):
        here.rewired(kept, grown)


def test_kept_and_grown_are_integers_on_the_cpu():
    here = Topology.full((2, 3))
    with pytest.raises(TopologyError, match=r"kept of torch\.float32"):
        here.rewired(torch.ones(1), torch.tensor([], dtype=torch.int64))
    with pytest.raises(InvalidInput, match="grown on meta"):
        here.rewired(torch.tensor([], dtype=torch.int64), torch.ones(1, dtype=torch.int64, device="meta"))
