"""All index work on topologies about as wide, or as high, as uint16 reaches, where columns take 2 bytes or 4."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.formats.indices import index_dtype
from pollard.formats.sampling import sample_absent
from pollard.formats.topology import Topology
from pollard.kernels.indices.candidates import candidates
from pollard.kernels.indices.choosing import choose, choose_slowly
from pollard.kernels.indices.rewire import move_values, positions_of, rewire, sample_grown
from pollard.kernels.products import derived
from strategies import changes, seeds, wide_topologies

few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@few
@given(data=st.data())
def test_grains_move_with_their_values(target, data):
    torch.set_num_threads(data.draw(st.sampled_from([1, 3])))
    here = data.draw(wide_topologies())
    stays, grown = data.draw(changes(here))
    there, source = rewire(here, stays, grown)
    slow, its_source = here.rewired(stays, grown)
    assert there.same_as(slow)
    assert torch.equal(source, its_source)
    assert torch.equal(there.positions(), torch.cat((here.positions(stays), grown)).sort().values)
    # A grain is worth its place.
    moved = move_values(here.positions().double(), source, -1.0)
    assert torch.equal(moved[source >= 0], there.positions()[source >= 0].double())
    change = here.difference(there)
    assert torch.equal(here.positions()[change.kept_here], there.positions()[change.kept_there])
    assert len(change.kept_here) + len(change.dropped) == here.grains


@few
@given(data=st.data(), seed=seeds)
def test_places_are_listed_chosen_and_drawn_as_by_the_twins(target, data, seed):
    here = data.draw(wide_topologies())
    stays, _ = data.draw(changes(here))
    present = here.positions(stays)
    assert torch.equal(positions_of(here, stays), present)
    for taken in (None, stays):
        drawn = sample_absent(here.places, here.positions(taken).numpy(), 999, seeded(seed))
        assert np.array_equal(sample_grown(here, 999, seeded(seed), stays=taken).numpy(), drawn)
    scores = torch.rand(here.groups, here.width, generator=seeded(seed))
    slow = choose_slowly(here, stays.numpy(), 0, scores.clone(), 0.9)
    fast = choose(here, stays, 0, scores.clone(), 0.9)
    assert all(torch.equal(one, other) for one, other in zip(fast, slow, strict=True))
    likely = torch.rand(here.groups, generator=seeded(seed)), torch.rand(here.width, generator=seeded(seed))
    found = candidates(here, 999, *likely, seeded(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLLARD_TARGET", "reference")
        assert found.same_as(candidates(here, 999, *likely, seeded(seed)))


@few
@given(wide_topologies(of=("unstructured", "b1x2")), st.sampled_from([1000, 40_000]))
def test_tiles_and_transposes_equal_their_twins(target, here, width):
    topology = here.vectors
    tiles = derived.tiling(topology, width)
    assert torch.equal(tiles.pointers, derived._table(topology, width, tiles.tiles))
    turned = derived.by_columns(topology, 2)
    made = turned.tiling.pointers, turned.rows, turned.permutation
    assert all(map(torch.equal, made, derived.turned_slowly(topology, 2)))


@pytest.mark.parametrize("height", [65_535, 65_536, 65_537])
def test_rows_of_a_transpose_are_as_narrow_as_there_are_few(target, height):
    topology = Topology.random((height, 3), 0.3, generator=seeded(0))
    turned = derived.by_columns(topology, height)
    assert turned.rows.dtype == index_dtype(height)
    assert turned.bytes == turned.tiling.bytes + topology.grains * (turned.rows.itemsize + 4)
    whole = topology.transpose()
    assert torch.equal(turned.rows.int(), whole.groups)
    assert torch.equal(turned.permutation, whole.permutation)
