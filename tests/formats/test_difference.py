from __future__ import annotations

import pytest
import torch
from hypothesis import given

from pollard.errors import TopologyError
from pollard.formats import difference
from pollard.formats.topology import Topology
from strategies import topology_pairs


@given(topology_pairs())
def test_a_difference_is_the_set_difference(pair):
    here, there = (topology.positions().tolist() for topology in pair)
    change = pair[0].difference(pair[1])
    assert [here[index] for index in change.kept_here] == sorted(set(here) & set(there))
    assert [there[index] for index in change.kept_there] == sorted(set(here) & set(there))
    assert [here[index] for index in change.dropped] == sorted(set(here) - set(there))
    assert [there[index] for index in change.grown] == sorted(set(there) - set(here))
    assert {array.dtype for array in (change.kept_here, change.kept_there, change.dropped, change.grown)} == {
        torch.int64
    }


@given(topology_pairs())
def test_pieces_make_no_difference(pair):
    whole = pair[0].difference(pair[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "_CHUNK", 3)
        pieces = pair[0].difference(pair[1])
    for name in ("kept_here", "kept_there", "dropped", "grown"):
        assert torch.equal(getattr(pieces, name), getattr(whole, name))


@given(topology_pairs())
def test_values_move_by_a_difference(pair):
    here, there = pair
    change = here.difference(there)
    moved = torch.full((there.grains,), -1)
    moved[change.kept_there] = here.positions()[change.kept_here]
    moved[change.grown] = there.positions()[change.grown]
    assert torch.equal(moved, there.positions())


@pytest.mark.parametrize("other", [Topology.full((4, 3)), Topology.full((4, 2), "v2")])
def test_only_like_is_compared_with_like(other):
    with pytest.raises(TopologyError, match="like with like"):
        Topology.full((4, 2)).difference(other)
