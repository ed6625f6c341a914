"""Forward products of one sample or a few where much is kept of single weights: a bit for each column says what is."""

import numpy as np
import pytest
import torch

import paired
from parity import HALVES, assert_parity, by_threads_and_layouts, operand
from pollard.formats.topology import Topology
from pollard.kernels.code import target
from pollard.kernels.code.target import TARGETS
from pollard.kernels.products import dispatch, generated, product
from pollard.kernels.products.derived import column_bits, derived_bytes
from pollard.kernels.products.operand import Operand

BFLOAT16 = torch.bfloat16
pytestmark = pytest.mark.skipif("avx512" not in target.host_isas(), reason="no vectors of 512 bits")
# Columns that fill words, that leave some over, fewer than a word has; an odd number of rows.
SHAPES = ((6, 256), (33, 200), (5, 40), (16, 1152))


@pytest.fixture(autouse=True)
def pairs(monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", "avx512")
    monkeypatch.setenv("POLLARD_TUNING", "default")
    monkeypatch.setattr(product, "SHARE", 1)
    if not target.expands_words():
        paired.pretend(monkeypatch)


def topology(shape=(33, 200), density=0.4):
    return Topology.random(shape, density, generator=torch.Generator().manual_seed(5))


def operation(found, samples, dtypes=("float32", "float32"), isa="avx512"):
    asked = Operand(samples, found.shape[1], False, found.shape[1], dtypes[0])
    return generated.operation("forward", found, asked, TARGETS[isa], dtypes[1])


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", ["row-major", "column-major", "strided", "broadcast"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), *HALVES], ids=str)
@pytest.mark.parametrize("samples", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_they_equal_their_twins(density, shape, samples, dtypes, layout):
    assert_parity(topology(shape, density), samples, layout, *dtypes)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("samples", range(1, 10))
def test_who_is_multiplied_by_bits(dtypes, samples):
    if dtypes == ("bfloat16", "bfloat16"):
        least = 0.125 if samples <= 4 else 0.16 if samples <= 8 else 2
    else:
        least = (1 + samples) / 10 if samples <= 4 else 2
    for density in (0.1, 0.14, 0.18, 0.25, 0.35, 0.45, 0.55):
        found = operation(topology((64, 500), density), samples, dtypes)
        assert (found == "bitmap") == (density >= least), density


def test_samples_of_float32_that_stay_in_no_cache_are_looked_up():
    wide = topology((4, 8192), 0.5)
    assert [operation(wide, samples) for samples in (1, 2)] == ["bitmap", "skinny"]
    assert operation(wide, 2, ("bfloat16", "bfloat16")) == "bitmap"


@pytest.mark.parametrize(("pattern", "isa"), [("v2", "avx512"), ("b1x2", "avx512"), ("unstructured", "avx2")])
def test_who_never_is(pattern, isa):
    found = Topology.random((64, 64), 0.5, pattern, torch.Generator().manual_seed(0))
    assert operation(found, 1, isa=isa) != "bitmap"


def test_few_samples_of_n_of_m_are_and_one_is_picked():
    found = Topology.random((64, 64), 0.5, "2:4", torch.Generator().manual_seed(0))
    both = ("bfloat16", "bfloat16")
    assert [operation(found, samples, both) for samples in (1, 2, 8)] == ["n_of_m", "bitmap", "bitmap"]
    assert operation(found, 5) == "skinny"
    assert_parity(found, 3, "row-major", BFLOAT16, BFLOAT16)


def test_bits_are_the_mask():
    found = topology()
    bit = np.unpackbits(column_bits(found, 64).numpy(), axis=1, bitorder="little")
    assert bit.shape == (33, 256)
    assert torch.equal(torch.from_numpy(bit[:, :200]).bool(), found.mask())
    assert not bit[:, 200:].any()


def test_bits_are_made_once_and_counted():
    found, x = topology(), torch.randn(1, 200)
    values = torch.randn(found.nnz)
    dispatch.forward(x, values, found)
    held = derived_bytes(found)
    dispatch.forward(x, values, found)
    assert column_bits(found, 64) is column_bits(found, 64)
    assert derived_bytes(found) == held
    assert held >= 33 * 256 // 8


@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_what_is_not_kept_counts_for_nothing(samples, dtype):
    found = topology((16, 200), 0.3)
    lacking = found.mask().any(0).logical_not()
    assert lacking.any()
    x = torch.ones(samples, 200, dtype=dtype)
    x[:, lacking] = torch.inf
    given = torch.ones(found.nnz, dtype=dtype)
    assert torch.equal(dispatch.forward(x, given, found).float(), found.mask().sum(1).float().expand(samples, -1))
    # A row that keeps nothing there, beside one that does.
    column = int(found.mask().sum(0).clamp(max=15).argmax())
    x[:, lacking], x[:, column] = 1, torch.nan
    assert torch.equal(dispatch.forward(x, given, found).isnan()[0], found.mask()[:, column])


def test_a_weight_that_is_not_finite_reaches_its_row_alone():
    found = topology()
    for dtype, samples in ((torch.float32, 1), (BFLOAT16, 1), (BFLOAT16, 4)):
        values = torch.ones(found.nnz, dtype=dtype)
        values[int(found.row_pointers[7])] = torch.nan
        y = dispatch.forward(torch.ones(samples, 200, dtype=dtype), values, found)
        assert torch.equal(y.isnan().any(0).nonzero().flatten(), torch.tensor([7]))


def test_rows_that_keep_nothing_are_their_bias():
    mask = torch.zeros(9, 130, dtype=torch.bool)
    mask[[0, 3, 8]] = True
    found, bias = Topology.from_mask(mask), torch.arange(9.0)
    assert operation(found, 1) == "bitmap"
    y = dispatch.forward(torch.ones(1, 130), torch.ones(found.nnz), found, bias)
    assert torch.equal(y[0], bias + mask.sum(1))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), *HALVES], ids=str)
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_samples_may_be_parts_of_longer_rows(samples, dtypes):
    found, values = topology((16, 200), 0.6), torch.linspace(-1, 1, topology((16, 200), 0.6).nnz).to(dtypes[1])
    assert operation(found, samples, tuple(str(each).removeprefix("torch.") for each in dtypes)) == "bitmap"
    x = torch.cat(
        [operand(samples, 200, "row-major", 3, dtypes[0]), torch.full((samples, 30), torch.nan, dtype=dtypes[0])], 1
    )[:, :200]
    assert torch.equal(dispatch.forward(x, values, found), dispatch.forward(x.contiguous(), values, found))


@pytest.mark.parametrize("samples", [1, 2, 3, 8])
def test_bits_depend_on_neither_threads_nor_layouts(samples):
    found, x = topology((97, 360)), operand(samples, 360, "row-major", 3, BFLOAT16)
    values, bias = torch.linspace(-1, 1, found.nnz).to(BFLOAT16), torch.linspace(-2, 2, 97).to(BFLOAT16)
    results = by_threads_and_layouts(x, values, found, bias)
    assert all(torch.equal(each, results[0]) for each in results)


def test_the_instruction_is_found_where_the_cpu_tells_of_it(monkeypatch):
    def found(*features, pairs=True):
        monkeypatch.setattr(target, "adds_pairs", lambda: pairs)
        monkeypatch.setattr(target.binding, "get_host_cpu_features", lambda: dict.fromkeys(features, True))
        return target.expands_words.__wrapped__()

    assert found(target.WORDS)
    assert not found()
    assert not found(target.WORDS, pairs=False)


def test_without_it_a_sample_of_bfloat16_is_widened(monkeypatch):
    monkeypatch.setattr(product, "expands_words", lambda: False)
    found = topology()
    both = ("bfloat16", "bfloat16")
    assert [operation(found, samples, both) for samples in (1, 3, 4)] == ["bitmap", "bitmap", "skinny"]
    for samples in (1, 3):
        assert_parity(found, samples, "row-major", BFLOAT16, BFLOAT16)
