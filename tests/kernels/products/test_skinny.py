"""Forward products of a few samples, whose kernels hold several weights in a vector."""

import pytest
import torch

from parity import DTYPES, HALVES, assert_parity, by_threads_and_layouts, operand
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code.target import TARGETS
from pollard.kernels.products import dispatch, generated
from pollard.kernels.products.operand import Operand
from pollard.kernels.products.product import Product

PATTERNS = ("unstructured", "v2", "v4", "v8", "v16", "b2x3", "b4x4", "b16x2", "b1x9", "b1x64", "b8x16", "2:4")


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", ["row-major", "column-major", "strided", "broadcast"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), *HALVES], ids=str)
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_few_samples_equal_their_twins(isa, pattern, samples, dtypes, layout):
    # Rows of no columns, of fewer than a turn takes, of many; features that fill vectors and those left over.
    for shape, density in (((48, 576), 0.02), ((16, 1152), 0.3), ((16, 576), 1.0)):
        kept = 0.5 if pattern == "2:4" else density
        topology = Topology.random(shape, kept, pattern, torch.Generator().manual_seed(5))
        assert_parity(topology, samples, layout, *dtypes)


@pytest.mark.parametrize("batch", range(1, 20))
def test_they_are_few_where_half_of_a_vector_holds_them(isa, batch):
    asked = Operand(batch, 8, False, 8, "float32")
    topology = Topology.random((8, 64), 0.1, generator=torch.Generator().manual_seed(0))
    found = {kind: generated.operation(kind, topology, asked, TARGETS[isa], "float32") for kind in generated.KERNELS}
    few = "matvec" if batch == 1 else "skinny" if 2 * batch <= TARGETS[isa].lanes else "gather"
    assert found == {**generated.KERNELS, "forward": few}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_sample_is_among_them_where_grains_have_a_few_rows(isa, pattern):
    topology = Topology.random((32, 1152), 0.5 if pattern == "2:4" else 0.1, pattern, torch.Generator().manual_seed(0))
    found = generated.operation("forward", topology, Operand(1, 1152, True, 1, "float32"), TARGETS[isa], "float32")
    assert (found == "skinny") == (topology.pattern.rows in {2, 4})


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v4", "v16", "b4x4"])
def test_bits_depend_on_neither_threads_nor_layouts(isa, pattern, samples, dtype):
    topology = Topology.random((96, 360), 0.2, pattern, torch.Generator().manual_seed(0))
    values, bias = torch.linspace(-1, 1, topology.nnz, dtype=dtype), torch.linspace(-2, 2, 96, dtype=dtype)
    x = operand(samples, 360, "row-major", 3, dtype)
    found = by_threads_and_layouts(x, values, topology, bias)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_not_kept_and_samples_that_are_not_there_count_for_nothing(isa, pattern, samples):
    topology = Topology.random((32, 576), 0.5 if pattern == "2:4" else 0.1, pattern, torch.Generator().manual_seed(1))
    values, x = torch.ones(topology.nnz), torch.full((samples, 576), torch.inf)
    kept = topology.mask().any(0)
    x[:, kept] = 1.0
    # The sample after the last is infinite as well, where it is read at all.
    column_major = torch.full((576, samples + 1), torch.inf)[:, :samples].t()
    column_major.copy_(x)
    counts = topology.mask().sum(1).float().expand(samples, -1)
    for given in (x, column_major, x.t().contiguous().t()):
        assert torch.equal(dispatch.forward(given, values, topology), counts)


def test_a_sample_that_is_infinite_changes_no_other(isa):
    topology = Topology.random((32, 100), 0.3, generator=torch.Generator().manual_seed(1))
    values, x = torch.linspace(-1, 1, topology.nnz), torch.randn(4, 100)
    usual = dispatch.forward(x, values, topology)
    x[1] = torch.nan
    spoilt = dispatch.forward(x, values, topology)
    assert torch.equal(spoilt[[0, 2, 3]], usual[[0, 2, 3]])
    assert spoilt[1].isnan().all()


def test_a_topology_serves_every_number_of_samples(isa):
    topology = Topology.random((64, 128), 0.2, "v4", torch.Generator().manual_seed(0))
    for samples in (2, 8, 3, 4, 2, 1, 9, 3):
        for layout in ("row-major", "column-major"):
            assert_parity(topology, samples, layout)


# Columns of which a tile holds a part, with rows of few, of enough for a turn and of none in a tile.
WIDE = ((12, 5000), (3, 17_000))


def uneven(shape, pattern, density=0.1):
    mask = Topology.random(shape, density, pattern, torch.Generator().manual_seed(7)).mask()
    rows = Pattern.parse(pattern).rows
    mask[:rows, 2000:] = False
    mask[rows : 2 * rows, :4100] = False
    return Topology.from_mask(mask, pattern)


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", ["row-major", "column-major", "strided"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), *HALVES], ids=str)
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v4", "b1x2"])
@pytest.mark.parametrize("shape", WIDE)
def test_tiles_of_columns_equal_their_twins(isa, shape, pattern, samples, dtypes, layout):
    assert_parity(uneven((4 * shape[0], shape[1]), pattern), samples, layout, *dtypes)


def tiled(topology, samples, isa="avx512"):
    found = Product.of(
        "skinny", topology, Operand(samples, topology.shape[1], False, 0, "float32"), TARGETS[isa], "float32"
    )
    return found.spec(found.decide(None).choice).tiled


def test_who_comes_in_tiles_is_a_matter_of_shapes(monkeypatch):
    monkeypatch.setenv("POLLARD_TUNING", "default")
    wide = uneven((8, 5000), "unstructured")
    assert [tiled(wide, samples) for samples in (2, 3, 4, 8)] == [True, True, True, True]
    assert not tiled(Topology.random((8, 2048), 0.3), 4)
    assert tiled(Topology.random((8, 2049), 0.3), 4)
    # So few in a tile that it is no use; so many rows that a number is looked up for.
    assert not tiled(uneven((8, 5000), "unstructured", 0.01), 8)
    assert not tiled(uneven((16, 5000), "v4"), 8)
    assert not tiled(uneven((8, 5000), "b1x2"), 8)
    assert tiled(uneven((8, 17_000), "v2"), 1)


@pytest.mark.parametrize("samples", [2, 4, 8])
@pytest.mark.parametrize("place", [0, 1800, 2047, 2048, 3000, 4999])
def test_an_infinite_number_that_is_kept_is_infinite_in_the_result(isa, samples, place):
    mask = uneven((8, 5000), "unstructured").mask()
    mask[5, place] = True
    topology = Topology.from_mask(mask)
    x = torch.ones(samples, 5000)
    x[0, place] = torch.inf
    y = dispatch.forward(x, torch.ones(topology.nnz), topology)
    assert torch.equal(y[0].isinf(), topology.mask()[:, place])
    assert torch.equal(y[1:], topology.mask().sum(1).float().expand(samples - 1, -1))


def test_bits_in_tiles_depend_on_neither_threads_nor_layouts(isa):
    topology = uneven((40, 5000), "v2")
    values, bias = torch.linspace(-1, 1, topology.nnz), torch.linspace(-2, 2, 40)
    x = operand(4, 5000, "row-major", 3)
    found = by_threads_and_layouts(x, values, topology, bias)
    assert all(torch.equal(each, found[0]) for each in found)
