from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import PatternError, TopologyError
from pollard.formats import positions
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from strategies import densities, grains, masks, patterns, runs, seeds, shapes, strided, topologies, wide_topologies


@given(st.data())
def test_a_mask_survives_the_round_trip(data):
    pattern = data.draw(patterns)
    mask = data.draw(masks(data.draw(shapes(pattern)), pattern))
    topology = Topology.from_mask(data.draw(strided(mask)), pattern)
    assert torch.equal(topology.mask(), mask)
    assert topology.nnz == int(mask.sum())
    assert torch.equal(topology.fan_in(), mask.sum(1))
    assert topology.density == (float(mask.double().mean()) if mask.numel() else 0.0)


@given(st.data())
def test_positions_list_the_mask_in_order(data):
    pattern = data.draw(patterns)
    shape = data.draw(shapes(pattern))
    mask = data.draw(masks(shape, pattern))
    topology = Topology.from_mask(mask, pattern)
    kept = mask[:: pattern.rows, :: pattern.columns]
    assert torch.equal(topology.positions(), kept.reshape(-1).nonzero().view(-1))
    again = Topology.from_positions(shape, pattern, topology.positions())
    assert again.same_as(topology)
    expected = [
        (group * pattern.rows + row) * shape[1] + column * pattern.columns + within
        for group, column in kept.nonzero().tolist()
        for within in range(pattern.columns)
        for row in range(pattern.rows)
    ]
    assert topology.weight_positions().tolist() == expected


@given(topologies())
def test_the_transpose_is_that_of_scipy(topology):
    by_row = scipy.sparse.csr_array(
        (np.ones(topology.grains), topology.columns.numpy(), topology.row_pointers.numpy()),
        (topology.groups, topology.width),
    )
    by_column = by_row.tocsc()
    transpose = topology.transpose()
    assert np.array_equal(transpose.row_pointers, by_column.indptr)
    assert np.array_equal(transpose.groups, by_column.indices)
    columns = np.repeat(np.arange(topology.width), np.diff(by_column.indptr))
    assert np.array_equal(topology.columns[transpose.permutation.long()], columns)
    assert sorted(transpose.permutation.tolist()) == list(range(topology.grains))
    assert {array.dtype for array in (transpose.row_pointers, transpose.groups, transpose.permutation)} == {torch.int32}


@given(topologies())
def test_bytes_are_those_of_the_arrays_that_exist(topology):
    fresh = 4 * (topology.groups + 1) + 2 * topology.grains
    assert topology.bytes == fresh
    topology.transpose()
    own = 4 * (topology.width + 1) + 8 * topology.grains
    assert topology.bytes == fresh + own
    cut = topology.vectors
    if cut is not topology:
        # N:M shares its arrays with what products read, blocks are cut into columns.
        more = 4 * (cut.groups + 1) + 2 * cut.grains if topology.pattern.columns > 1 else 0
        assert topology.bytes == fresh + own + more
        cut.transpose()
        assert topology.bytes == fresh + own + more + 4 * (cut.width + 1) + 8 * cut.grains


@given(st.data())
def test_covering_keeps_the_grains_that_hold_a_kept_weight(data):
    pattern = data.draw(grains)
    mask = data.draw(masks(data.draw(shapes(pattern))))
    covering = Topology.covering(data.draw(strided(mask)), pattern)
    assert torch.equal(covering.mask(), pattern.spread(pattern.grain_sum(mask.int()) > 0))
    if not torch.equal(covering.mask(), mask):
        with pytest.raises(PatternError, match="covering"):
            Topology.from_mask(mask, pattern)


@given(st.data(), seeds)
def test_random_is_exact_and_follows_its_generator(data, seed):
    pattern = data.draw(patterns)
    shape = data.draw(shapes(pattern, groups=40, columns=300))
    density = pattern.density or data.draw(densities.filter(bool))
    topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(seed))
    assert topology.grains == round(density * topology.places)
    Topology(shape, pattern, topology.row_pointers, topology.columns)
    assert topology.same_as(Topology.random(shape, density, pattern, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.51, 0.95])
def test_random_leaves_no_corner_out(density):
    # 300,000 grains, past the totals that are shuffled whole, in 30 x 25 blocks of 400.
    topology = Topology.random((600, 500), density, generator=torch.Generator().manual_seed(0))
    Topology(topology.shape, topology.pattern, topology.row_pointers, topology.columns)
    assert topology.grains == round(density * 300_000)
    blocks = topology.mask().double().view(30, 20, 25, 20).mean((1, 3))
    assert (blocks - density).abs().max() < 6 * (density * (1 - density) / 400) ** 0.5


def test_random_never_holds_the_weight():
    # One byte a weight would be 200 TB.
    topology = Topology.random((100_000, 2**31 - 1), 1e-11, generator=torch.Generator().manual_seed(0))
    assert topology.grains == round(1e-11 * 100_000 * (2**31 - 1))
    Topology(topology.shape, topology.pattern, topology.row_pointers, topology.columns)


@given(st.data())
def test_full_keeps_everything(data):
    pattern = data.draw(grains)
    shape = data.draw(shapes(pattern))
    full = Topology.full(shape, pattern)
    assert full.mask().all()
    assert full.nnz == shape[0] * shape[1]
    assert full.same_as(Topology.from_mask(torch.ones(shape, dtype=torch.bool), pattern))


@given(st.data())
def test_pieces_make_no_difference(data):
    pattern = data.draw(patterns)
    shape = data.draw(shapes(pattern))
    whole = Topology.from_mask(data.draw(masks(shape, pattern)), pattern)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "_CHUNK", 3)
        assert Topology.from_mask(whole.mask(), pattern).same_as(whole)
        assert Topology.from_positions(shape, pattern, whole.positions()).same_as(whole)
        density = pattern.density or 0.8
        dense = Topology.random(shape, density, pattern, torch.Generator().manual_seed(3))
    assert dense.same_as(Topology.random(shape, density, pattern, torch.Generator().manual_seed(3)))


def test_the_arrays_are_private_and_stay_the_same_objects():
    pointers, columns = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    topology = Topology((2, 2), "unstructured", pointers, columns)
    pointers.fill_(9)
    columns.fill_(9)
    assert topology.mask().tolist() == [[True, False], [False, True]]
    topology.columns.fill_(9)
    topology.row_pointers.fill_(9)
    assert topology.mask().tolist() == [[True, False], [False, True]]
    assert topology.indices is topology.indices
    assert topology.transpose() is topology.transpose()


def test_adopting_takes_the_arrays_over():
    for width, dtype in ((2, torch.uint16), (65_537, torch.int32)):
        pointers, columns = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=dtype)
        topology = Topology.adopt((2, width), "unstructured", pointers, columns)
        assert topology.indices.row_pointers is topology.handed.row_pointers
        assert topology.indices.row_pointers.data_ptr() == pointers.data_ptr()
        assert topology.indices.columns.data_ptr() == topology.handed.columns.data_ptr() == columns.data_ptr()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.int64])
@pytest.mark.parametrize("width", [65_535, 65_536, 65_537])
def test_indices_of_any_integers_and_strides_are_held_contiguous_and_as_narrow_as_columns_allow(width, dtype):
    pointers, columns = torch.tensor([0, 9, 1, 9, 2])[::2], torch.tensor([0, 9, 65_534, 9]).to(dtype)[::2]
    topology = Topology((2, width), "unstructured", pointers, columns)
    assert topology.columns.tolist() == topology.indices.columns.tolist() == [0, 65_534]
    assert topology.columns.dtype == topology.row_pointers.dtype == topology.indices.row_pointers.dtype == torch.int32
    assert topology.indices.columns.dtype == (torch.int32 if width > 65_536 else torch.uint16)
    assert all(array.is_contiguous() for array in (*topology.indices, topology.columns, topology.row_pointers))
    for dropped in (columns, topology.columns):
        dropped.zero_()
    assert topology.indices.columns.tolist() == [0, 65_534]


@given(wide_topologies())
def test_wherever_indices_become_wider_all_forms_of_a_topology_agree(topology):
    positions = topology.positions()
    held = torch.uint16 if topology.width <= 65_536 else torch.int32
    assert topology.indices.columns.dtype == held
    assert torch.equal(positions % topology.width, topology.columns.long())
    for other in (
        Topology(topology.shape, topology.pattern, topology.row_pointers, topology.columns),
        Topology(topology.shape, topology.pattern, *topology.indices),
        Topology.from_mask(topology.mask(), topology.pattern),
        pickle.loads(pickle.dumps(topology)),
        SparseMatrix.from_dense(SparseMatrix(torch.ones(topology.nnz), topology).to_dense(), topology).topology,
    ):
        assert other.same_as(topology)
        assert other.indices.columns.dtype == held
        assert (other.fingerprint, other.signature.tolist()) == (topology.fingerprint, topology.signature.tolist())
    vectors = topology.vectors
    assert vectors.indices.columns.dtype == (torch.uint16 if vectors.width <= 65_536 else torch.int32)
    assert torch.equal(topology.weight_positions().sort().values, topology.mask().view(-1).nonzero().view(-1))
    assert torch.equal(topology.columns[topology.transpose().permutation.long()], topology.columns.sort().values)


@given(topologies())
def test_copies_and_pickles(topology):
    assert copy.deepcopy(topology) is topology
    topology.columns.topology = topology  # as the kernels do: a pickle must not chase its own tail
    restored = pickle.loads(pickle.dumps(topology))
    assert restored.same_as(topology)
    assert restored.fingerprint == topology.fingerprint


def test_a_topology_cannot_be_changed():
    with pytest.raises(AttributeError):
        Topology.full((2, 2)).shape = (3, 3)


@given(topologies(), topologies())
def test_fingerprints_tell_what_same_as_tells(first, second):
    assert first.same_as(second) == (first.fingerprint == second.fingerprint)
    assert first.same_as(Topology.from_positions(first.shape, first.pattern, first.positions()))


def test_shape_and_pattern_are_part_of_the_fingerprint():
    pointers, columns = torch.tensor([0, 1]), torch.tensor([0])
    alike = [Topology(shape, pattern, pointers, columns) for shape, pattern in [((2, 1), "v2"), ((1, 1), Pattern())]]
    wider = Topology((1, 2), "unstructured", pointers, columns)
    assert len({topology.fingerprint for topology in (*alike, wider)}) == 3


def test_equality_is_identity():
    full = Topology.full((2, 2))
    assert full != Topology.full((2, 2))
    assert len({full, full, Topology.full((2, 2))}) == 2


def test_a_notebook_shows_figures():
    shown = Topology.from_mask(torch.tensor([[True, True, False], [False, True, False]]))._repr_html_()
    assert "<td>2 x 3</td><td>unstructured</td><td>0.5000</td><td>3</td><td>1 to 2</td>" in shown
    assert "<td>0 x 3</td>" in Topology.from_mask(torch.zeros(0, 3, dtype=torch.bool))._repr_html_()


def test_a_pickle_of_an_earlier_version_is_read():
    kept = Topology.random((8, 6), 0.4, "v2", torch.Generator().manual_seed(0))
    restore, (kind, shape, pattern, *_) = kept.__reduce__()
    assert restore(kind, shape, pattern, *(array.numpy() for array in kept.indices)).same_as(kept)
    with pytest.raises(TopologyError):
        restore(kind, shape, pattern, b"", b"")


@given(st.data())
def test_vectors_are_the_same_weights_in_the_same_order(data):
    topology = data.draw(topologies())
    vectors = topology.vectors
    Topology(vectors.shape, vectors.pattern, vectors.row_pointers, vectors.columns)
    assert vectors.pattern == Pattern(topology.pattern.rows)
    assert vectors.vectors is vectors
    assert (vectors is topology) == (topology.pattern == vectors.pattern)
    assert torch.equal(vectors.weight_positions(), topology.weight_positions())
    assert vectors.nnz == topology.nnz


@given(st.data())
def test_n_of_every_m_it_is_or_it_is_refused(data):
    pattern = data.draw(runs)
    shape = data.draw(shapes(pattern, smallest=1))
    mask = data.draw(masks(shape, pattern))
    assert (mask.view(-1, pattern.m).sum(1) == pattern.n).all()
    topology = Topology.from_mask(mask, pattern)
    kept = topology.positions()
    fewer, other = kept[1:], kept.clone()
    with pytest.raises(PatternError, match=f"exactly {pattern.n} of every {pattern.m}"):
        Topology.from_positions(shape, pattern, fewer)
    free = (~mask).view(-1).nonzero().view(-1)
    elsewhere = free[free // pattern.m != kept[0] // pattern.m]
    if len(elsewhere):
        other[0] = elsewhere[0]
        with pytest.raises(PatternError, match=f"exactly {pattern.n} of every {pattern.m}"):
            Topology.from_positions(shape, pattern, other.sort().values)
        with pytest.raises(PatternError):
            topology.rewired(torch.arange(len(kept)) > 0, elsewhere[:1])
    less = mask.clone()
    less.view(-1)[kept[0]] = False
    with pytest.raises(PatternError, match=rf"keeps {pattern.n - 1} to .*Topology\.covering"):
        Topology.from_mask(less, pattern)
    covering = Topology.covering(less, pattern)
    assert covering.grains == topology.grains
    assert covering.mask()[less].all()
    first = (~less).view(-1, pattern.m)[kept[0] // pattern.m].nonzero()[0, 0] + kept[0] // pattern.m * pattern.m
    assert covering.mask().view(-1)[first]


def test_a_pattern_that_says_what_is_kept_takes_no_other_density():
    with pytest.raises(PatternError, match=r"density 0\.1 with pattern 2:4.*0\.5"):
        Topology.random((4, 8), 0.1, "2:4")
    with pytest.raises(PatternError, match="density 1 with pattern 2:4"):
        Topology.full((4, 8), "2:4")


def test_every_choice_of_n_out_of_m_is_equally_likely():
    topology = Topology.random((400, 100), 0.5, "2:4", torch.Generator().manual_seed(0))
    choices = topology.mask().view(-1, 4).long() @ torch.tensor([8, 4, 2, 1])
    counts = torch.bincount(choices, minlength=16)[[3, 5, 6, 9, 10, 12]]
    assert counts.sum() == 10_000
    assert (counts - 10_000 / 6).abs().max() < 6 * (10_000 * 5 / 36) ** 0.5
