"""Nothing but a valid matrix gets past the constructor, and nothing at all brings it down."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pollard.errors import InvalidInput, PatternError, TopologyError
from pollard.formats import indices
from pollard.formats.topology import Topology
from strategies import patterns, topologies

POINTERS, COLUMNS = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])


def test_the_arrays_every_refusal_below_starts_from_are_valid():
    assert Topology((2, 3), "unstructured", POINTERS, COLUMNS).grains == 3


@pytest.mark.parametrize(
    "pointers, message",
    [
        (torch.tensor([0, 3]), "2 row pointers.*3, one more"),
        (torch.tensor([1, 2, 3]), "first row pointer 1"),
        (torch.tensor([0, 4, 3]), "fall"),
        (torch.tensor([0, 2, 2]), "last row pointer 2.*3"),
        (torch.tensor([0, 2, 4]), "last row pointer 4.*3"),
        (torch.tensor([0, -1, 3]), "row_pointers from -1"),
        (torch.tensor([0, 2, 2**31]), "row_pointers from 0 to 2147483648"),
        (torch.tensor([0.0, 2.0, 3.0]), "float32"),
        (torch.tensor([[0, 2, 3]]), r"\(1, 3\)"),
        (torch.tensor([0, 2, 3]).to_sparse(), "1-D int32 or int64"),
        ([0, 2, 3], "type list"),
        (np.array([0, 2, 3]), "type ndarray"),
    ],
)
def test_bad_row_pointers_are_refused(pointers, message):
    with pytest.raises(TopologyError, match=message):
        Topology((2, 3), "unstructured", pointers, COLUMNS)


@pytest.mark.parametrize(
    "columns, message",
    [
        (torch.tensor([0, 3, 1]), "columns from 0 to 3.*columns from 0 to 2"),
        (torch.tensor([-1, 2, 1]), "columns from -1"),
        (torch.tensor([2, 0, 1]), "column 0 after 2 at grain 1"),
        (torch.tensor([1, 1, 1]), "column 1 after 1 at grain 1"),
        (torch.tensor([0, 2**40, 1]), "columns from 0"),
        (torch.tensor([0, 2]), "last row pointer 3"),
        (torch.tensor([0, 2, 1], dtype=torch.int16), "int16"),
        (torch.tensor([False, True, False]), "bool"),
        (None, "type NoneType"),
    ],
)
def test_bad_columns_are_refused(columns, message):
    with pytest.raises(TopologyError, match=message):
        Topology((2, 3), "unstructured", POINTERS, columns)


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4), (2.0, 3), "ab", None, (-1, 3), (2, -1), (2**31, 3), (2, 2**31)])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(TopologyError, match="shape"):
        Topology(shape, "unstructured", POINTERS, COLUMNS)


def test_bad_patterns_are_refused():
    with pytest.raises(PatternError, match="2:4"):
        Topology((2, 3), "2:4", POINTERS, COLUMNS)
    with pytest.raises(PatternError, match="multiple of 4"):
        Topology((2, 3), "v4", POINTERS, COLUMNS)


def test_arrays_elsewhere_than_on_the_cpu_are_refused():
    with pytest.raises(InvalidInput, match="row_pointers on meta"):
        Topology((2, 3), "unstructured", POINTERS.to("meta"), COLUMNS)
    with pytest.raises(InvalidInput, match=r"mask of torch.bool .* on meta"):
        Topology.from_mask(torch.ones(2, 3, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize("build", [Topology.full, lambda shape: Topology.random(shape, 0.5)])
def test_more_grains_than_int32_counts_are_refused(build):
    with pytest.raises(TopologyError, match="at most 2147483647"):
        build((2**17, 2**17))


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3), torch.ones(6, dtype=torch.bool), [[True]], torch.ones(2, 3).bool().to_sparse()]
)
def test_bad_masks_are_refused(mask):
    with pytest.raises(InvalidInput, match="bool tensor"):
        Topology.from_mask(mask)


@pytest.mark.parametrize("positions", [[1, 0], [0, 0], [-1, 2], [0, 6]])
def test_bad_positions_are_refused(positions):
    with pytest.raises(TopologyError, match="positions"):
        Topology.from_positions((2, 3), "unstructured", torch.tensor(positions))


@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_densities_outside_0_to_1_are_refused(density):
    with pytest.raises(InvalidInput, match="density"):
        Topology.random((2, 3), density)


@given(topologies(smallest=1), st.data())
def test_pieces_make_no_difference(topology, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indices, "_CHUNK", 2)
        Topology(topology.shape, topology.pattern, topology.row_pointers, topology.columns)
        if topology.grains > 1:
            place = data.draw(st.integers(1, topology.grains - 1))
            columns = topology.columns.clone()
            columns[place] = columns[place - 1]
            same_row = place not in topology.row_pointers.tolist()
            if same_row:
                with pytest.raises(TopologyError, match="strictly ascending"):
                    Topology(topology.shape, topology.pattern, topology.row_pointers, columns)


numbers = st.one_of(st.integers(-3, 8), st.sampled_from([2**31 - 1, -(2**31)]))
index_arrays = st.sampled_from([np.int32, np.int64]).flatmap(
    lambda dtype: arrays.arrays(dtype, st.integers(0, 8), elements=numbers)
)


@given(st.tuples(st.integers(-1, 8), st.integers(-1, 6)), patterns, index_arrays, index_arrays)
def test_any_arrays_are_a_matrix_or_refused(shape, pattern, pointers, columns):
    try:
        topology = Topology(shape, pattern, torch.from_numpy(pointers), torch.from_numpy(columns))
    except InvalidInput:
        return
    assert valid(topology)


@given(topologies(), index_arrays, st.randoms())
def test_any_damage_is_a_matrix_or_refused(topology, noise, random):
    arrays = [topology.row_pointers.clone(), topology.columns.clone()]
    for number in noise.tolist():
        array = random.choice(arrays)
        if len(array):
            array[random.randrange(len(array))] = max(min(number, 2**31 - 1), -(2**31))
    try:
        damaged = Topology(topology.shape, topology.pattern, *arrays)
    except TopologyError:
        return
    assert valid(damaged)


def valid(topology: Topology) -> bool:
    """What a kernel relies on, spelt out row by row."""
    pointers, columns = topology.row_pointers.tolist(), topology.columns.tolist()
    rows = [columns[start:stop] for start, stop in pairwise(pointers)]
    return (
        topology.row_pointers.dtype == topology.columns.dtype == torch.int32
        and len(rows) * topology.pattern.rows == topology.shape[0]
        and sum(map(len, rows)) == len(columns)
        and all(row == sorted(set(row)) for row in rows)
        and all(0 <= column < topology.shape[1] for column in columns)
    )
