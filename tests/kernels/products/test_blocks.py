"""Grains of several columns, and N of every M: against their twins and against the same weights column by column."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from parity import HALVES, assert_parity, forced_panels, products
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.products.derived import places_in_runs
from pollard.kernels.products.tuning import Choice
from strategies import runs, topologies


@pytest.mark.pairwise
@pytest.mark.parametrize("pattern", ["b1x2", "b1x4", "b1x16", "b1x64", "b2x2", "b4x8", "b8x64", "b16x2", "b16x16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_have_the_bits_of_their_columns(isa, pattern, dtype):
    kind = Pattern.parse(pattern)
    for batch, (groups, width) in itertools.product((1, 3, 20, 130), ((3, 40), (2, 1), (1, 150))):
        shape = groups * kind.rows, width * kind.columns
        topology = Topology.random(shape, 0.2 if width > 1 else 1.0, pattern, torch.Generator().manual_seed(0))
        own, by_column = products(topology, batch, dtype), products(topology.vectors, batch, dtype)
        assert torch.equal(own[1], by_column[1])
        assert torch.equal(own[2], by_column[2])
        if batch > 20:
            assert torch.equal(own[0], by_column[0])
        else:
            # Rows of few columns are summed in several chains, or lanes, to which whole blocks go.
            assert_parity(topology, batch, "row-major", dtype, dtype)


@pytest.mark.pairwise
@pytest.mark.parametrize("pattern", ["b1x2", "b1x8", "b2x4", "b8x16", "b16x2"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float16, torch.float32)], ids=str)
def test_blocks_equal_their_twin(isa, pattern, dtypes):
    for batch, layout in ((1, "row-major"), (20, "column-major"), (300, "strided")):
        for shape, density in (((48, 96), 0.3), ((16, 16), 1.0), ((32, 2048), 0.05)):
            topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(5))
            assert_parity(topology, batch, layout, *dtypes)


@pytest.mark.pairwise
@pytest.mark.parametrize("pattern", ["b1x3", "b1x5", "b1x7", "b1x9", "b1x25", "b1x49", "b2x3", "b4x9", "b16x25"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), *HALVES], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5, 20])
def test_grains_that_fill_no_vector_equal_their_twin(isa, pattern, dtypes, batch):
    kind = Pattern.parse(pattern)
    for density in (0.2, 0.7, 1.0):
        topology = Topology.random(
            (3 * kind.rows, 20 * kind.columns), density, pattern, torch.Generator().manual_seed(5)
        )
        assert_parity(topology, batch, "row-major", *dtypes)


@pytest.mark.parametrize("pattern", ["b1x4", "b4x2"])
def test_blocks_have_the_same_bits_for_any_tile_and_any_threads(isa, pattern, monkeypatch):
    def fresh():
        return Topology.random((64, 896), 0.2, pattern, torch.Generator().manual_seed(0))

    torch.set_num_threads(1)
    usual = products(fresh(), 300)
    for threads, choice in ((2, Choice(1, 0)), (1, Choice(2, 16)), (3, Choice(3, 100))):
        torch.set_num_threads(threads)
        forced_panels(monkeypatch, choice)
        for ours, theirs in zip(products(fresh(), 300), usual, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.pairwise
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), *HALVES], ids=str)
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "3:4", "1:8", "2:8", "4:8", "2:5", "8:16", "20:32"])
def test_one_sample_of_n_of_every_m(isa, pattern, dtypes):
    density, m = Pattern.parse(pattern).density, Pattern.parse(pattern).m
    for rows, count in ((1, 1), (5, 3), (40, 25), (7, 64)):
        topology = Topology.random((rows, count * m), density, pattern, torch.Generator().manual_seed(0))
        for layout in ("row-major", "strided"):
            assert_parity(topology, 1, layout, *dtypes)


@given(topology=topologies(smallest=1, of=runs))
@settings(max_examples=30)
def test_places_in_runs_say_which_weights_are_kept(topology):
    pattern, rows = topology.pattern, topology.shape[0]
    width, kept = (pattern.m - 1).bit_length(), topology.nnz // max(rows, 1)
    found = places_in_runs(topology, 4)
    assert len(found) == rows * -(-kept * width // 8) + 4
    bits = np.unpackbits(found[:-4].numpy().reshape(rows, -1), axis=1, bitorder="little", count=kept * width)
    places = (bits.reshape(rows, kept, width) << np.arange(width)).sum(2)
    starts = np.arange(kept) // pattern.n * pattern.m
    assert (places + starts).ravel().tolist() == topology.columns.tolist()
