"""Every kernel against its slow twin: operation x pattern x instruction set x layout x batch, odd shapes included."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity import DTYPES, assert_parity
from pollard.formats.topology import Topology
from pollard.kernels.products import derived, dispatch
from strategies import wide_topologies

PATTERNS = ("unstructured", "v2", "v4", "v8", "v16")
BATCHES = (1, 20, 100, 300)
LAYOUTS = ("row-major", "column-major", "strided", "broadcast")


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_kernels_equal_their_twins(isa, pattern, batch, layout):
    for shape, density in (((48, 100), 0.3), ((16, 7), 1.0), ((32, 1), 0.6), ((16, 2100), 0.02)):
        topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(5))
        assert_parity(topology, batch, layout)


def test_no_batch_no_rows_no_columns_and_nothing_kept(isa):
    empty = Topology.from_mask(torch.zeros(4, 3, dtype=torch.bool))
    for topology, batch in (
        (empty, 5),
        (Topology.full((4, 3)), 0),
        (Topology.full((0, 3)), 5),
        (Topology.full((4, 0)), 5),
    ):
        assert_parity(topology, batch, "row-major")


def test_empty_rows_and_columns_give_bias_and_zero(isa):
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[3, 4] = mask[17, 29] = True
    assert_parity(Topology.from_mask(mask), 20, "row-major")


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 80),
    batch=st.integers(1, 40),
    keep=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_any_mask_any_batch(rows, columns, batch, keep, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < keep
    topology = Topology.from_mask(mask)
    values = torch.randn(topology.nnz)
    x, grad = torch.randn(batch, columns), torch.randn(batch, rows)
    dense = torch.zeros(rows, columns)
    dense[mask] = values
    torch.testing.assert_close(dispatch.forward(x, values, topology), x @ dense.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dispatch.input_grad(grad, values, topology), grad @ dense, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dispatch.value_grad(grad, x, topology), (grad.t() @ x)[mask], rtol=1e-4, atol=1e-4)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    topology=wide_topologies(),
    batch=st.sampled_from([1, 3, 20]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_columns_beyond_16_bits_and_those_that_just_fit(isa, topology, batch, dtype):
    assert_parity(topology, batch, "row-major", dtype, dtype)


@pytest.mark.parametrize("height", [65_535, 65_536, 65_537])
def test_as_many_rows_as_16_bits_count(isa, height):
    # The input gradient gathers the transpose, whose indices are rows.
    topology = Topology.random((height, 3), 0.3, generator=torch.Generator().manual_seed(0))
    assert_parity(topology, 20, "row-major")
    assert derived.widths(topology, transposed=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_pass_through_and_stay_in_their_sample(isa, dtype):
    topology = Topology.full((2, 2))
    x = torch.ones(4, 2, dtype=dtype)
    x[0, 0], x[2, 0] = float("nan"), float("inf")
    y = dispatch.forward(x, torch.ones(4, dtype=dtype), topology, activation="relu")
    assert y[0].isnan().all()
    assert y[2].isinf().all()
    assert y[1::2].tolist() == [[2.0] * 2] * 2


def test_double_precision_is_torchs(isa):
    y = dispatch.forward(torch.ones(4, 2).double(), torch.ones(6).double(), Topology.full((3, 2)))
    assert y.dtype == torch.float64
    assert y.tolist() == [[2.0] * 3] * 4
