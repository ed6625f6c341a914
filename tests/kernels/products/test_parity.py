"""Every kernel against its slow twin: operation x pattern x instruction set x layout x batch, odd shapes included."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code.target import TARGETS, host_isas
from pollard.kernels.products import derived, dispatch, product, reference, tuning
from pollard.kernels.products.derived import places_in_runs
from pollard.kernels.products.tuning import Choice, Decision
from strategies import runs, topologies, wide_topologies

PATTERNS = ("unstructured", "v2", "v4", "v8", "v16")
BATCHES = (1, 20, 100, 300)
LAYOUTS = ("row-major", "column-major", "strided", "broadcast")
HALVES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
)
ISAS = tuple(isa for isa in host_isas() if isa != "neon" or host_isas()[0] == "neon")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", request.param)
    monkeypatch.setenv("POLLARD_TUNING", "default")
    # All threads, however little there is to share.
    monkeypatch.setattr(product, "SHARE", 1)
    return request.param


def operand(batch, features, layout, seed, dtype=torch.float32):
    made = torch.Generator().manual_seed(seed)
    if layout == "row-major":
        return torch.randn(batch, features, generator=made).to(dtype)
    if layout == "column-major":
        return torch.randn(features, batch, generator=made).to(dtype).t()
    if layout == "strided":
        return torch.randn(batch, 2 * features + 1, generator=made).to(dtype)[:, 1::2]
    return torch.randn(1, features, generator=made).to(dtype).expand(batch, features)


def assert_close(fast, exactly, operands, terms):
    # Against the twin in double precision; a sum of n rounded products is off by at most n units of rounding of the
    # sum of their magnitudes, here doubled. Half precision rounds that sum once more.
    exact = exactly(*(each if each is None else each.double() for each in operands))
    size = exactly(*(each if each is None else each.double().abs() for each in operands))
    assert fast.shape == exact.shape
    allowed = torch.finfo(torch.float32).eps * (terms + 2) * size
    if fast.dtype != torch.float32:
        allowed += torch.finfo(fast.dtype).eps / 2 * (exact.abs() + allowed) + torch.finfo(fast.dtype).smallest_normal
    assert ((fast.double() - exact).abs() <= allowed + 1e-30).all()


def assert_parity(topology, batch, layout, dtype=torch.float32, values_dtype=torch.float32):
    out, width = topology.shape
    values = torch.randn(topology.nnz, generator=torch.Generator().manual_seed(1)).to(values_dtype)
    bias = torch.randn(out, generator=torch.Generator().manual_seed(2)).to(values_dtype)
    x, grad = operand(batch, width, layout, 3, dtype), operand(batch, out, layout, 4, dtype)
    for offset, relu in ((None, False), (bias, False), (bias, True), (None, True)):
        fast = dispatch.forward(x, values, topology, offset, relu=relu)
        plain = dispatch.forward(x, values, topology, offset)
        assert torch.equal(fast, plain.relu() if relu else plain)
        assert_close(plain, lambda x, v, b: reference.forward(x, v, topology, b), (x, values, offset), width)
        assert batch <= 1 or fast.stride() == (1, batch)
    fast = dispatch.input_grad(grad, values, topology)
    assert_close(fast, lambda g, v: reference.input_grad(g, v, topology), (grad, values), out)
    fast = dispatch.value_grad(grad, x, topology, values_dtype)
    assert fast.dtype == values_dtype
    assert_close(fast, lambda g, x: reference.value_grad(g, x, topology), (grad, x), batch)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_kernels_equal_their_twins(isa, pattern, batch, layout):
    for shape, density in (((48, 100), 0.3), ((16, 7), 1.0), ((32, 1), 0.6), ((16, 2100), 0.02)):
        topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(5))
        assert_parity(topology, batch, layout)


@pytest.mark.parametrize(
    ("batch", "layout"),
    [
        (1, "strided"),
        (2, "column-major"),
        (7, "row-major"),
        (33, "column-major"),
        (64, "column-major"),
        (301, "row-major"),
    ],
)
@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v16", "b4x2", "2:4"])
@pytest.mark.parametrize("dtypes", HALVES, ids=str)
def test_half_precision_is_rounded_once(isa, dtypes, pattern, batch, layout):
    for shape, density in (((48, 100), 0.5), ((16, 8), 0.5), ((16, 2100), 0.5 if pattern == "2:4" else 0.02)):
        topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(5))
        assert_parity(topology, batch, layout, *dtypes)


@pytest.mark.parametrize("pattern", ["unstructured", "v4", "v16"])
def test_one_topology_serves_batches_of_one_step_and_of_several(isa, pattern):
    topology = Topology.random((48, 100), 0.3, pattern, torch.Generator().manual_seed(5))
    for batch in (200, 300, 256, 257, 512):
        assert_parity(topology, batch, "row-major", torch.bfloat16, torch.bfloat16)


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


def products(topology, batch, dtype=torch.float32):
    values = torch.randn(topology.nnz, generator=torch.Generator().manual_seed(1)).to(dtype)
    x, grad = (operand(batch, side, "row-major", 3 + side, dtype) for side in reversed(topology.shape))
    return (
        dispatch.forward(x, values, topology, relu=True),
        dispatch.input_grad(grad, values, topology),
        dispatch.value_grad(grad, x, topology),
    )


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["unstructured", "v4", "v8"])
def test_results_are_bit_identical_for_any_number_of_threads(isa, pattern, dtype):
    topology = Topology.random((64, 900), 0.2, pattern, torch.Generator().manual_seed(0))
    torch.set_num_threads(1)
    alone = products(topology, 300, dtype)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for ours, theirs in zip(products(topology, 300, dtype), alone, strict=True):
            assert torch.equal(ours, theirs)


def forced(monkeypatch, choice):
    monkeypatch.setattr(tuning, "known", lambda key, candidates: Decision(choice, "forced"))


def forced_panels(monkeypatch, choice):
    # Dot products, which have no panels, are taken 4 at a time.
    dots = replace(choice, vectors=4)
    monkeypatch.setattr(tuning, "known", lambda key, _: Decision(dots if key.startswith("sddmm") else choice, "forced"))


@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v16"])
@pytest.mark.parametrize("batch", [1, 20, 64, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_products_have_the_same_bits_however_many_are_taken_at_a_time(isa, pattern, batch, dtype, monkeypatch):
    x, grad = operand(batch, 900, "column-major", 3, dtype), operand(batch, 64, "column-major", 4, dtype)
    made = []
    for dots, width in itertools.product((4, 8, 16), (0, 16, 100)):
        if dots <= TARGETS[isa].lanes:
            forced(monkeypatch, Choice(dots, width))
            topology = Topology.random((64, 900), 0.2, pattern, torch.Generator().manual_seed(0))
            made.append(dispatch.value_grad(grad, x, topology))
    assert all(torch.equal(each, made[0]) for each in made)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v16"])
def test_results_are_bit_identical_for_any_tile_and_panel(isa, pattern, dtype, monkeypatch):
    def fresh():
        return Topology.random((64, 900), 0.2, pattern, torch.Generator().manual_seed(0))

    usual = products(fresh(), 300, dtype)
    for choice in (Choice(1, 0), Choice(2, 16), Choice(3, 100), Choice(5, 899)):
        forced_panels(monkeypatch, choice)
        for ours, theirs in zip(products(fresh(), 300, dtype), usual, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scattered_or_gathered_the_input_gradient_has_the_same_bits(isa, dtype, monkeypatch):
    def run(choice):
        forced(monkeypatch, choice)
        topology = Topology.random((70, 300), 0.2, generator=torch.Generator().manual_seed(0))
        values, grad = torch.linspace(-1, 1, topology.nnz, dtype=dtype), operand(100, 70, "row-major", 4, dtype)
        return dispatch.input_grad(grad, values, topology)

    scattered = run(Choice(4, 64))
    for transposed in (Choice(4, 0, transposed=True), Choice(3, 16, transposed=True)):
        assert torch.equal(run(transposed), scattered)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_sample_is_what_it_is_in_a_batch_and_has_the_same_bits_wherever_it_lies(isa, pattern, dtype):
    # Rows of all lengths: those side by side end at different places.
    topology = Topology.from_mask(ragged(pattern, 112, 90), pattern)
    values, bias = torch.linspace(-1, 1, topology.nnz, dtype=dtype), torch.linspace(-2, 2, 112, dtype=dtype)
    x = operand(5, 90, "row-major", 3, dtype)
    for options in ({}, {"bias": bias}, {"bias": bias, "relu": True}):
        together = dispatch.forward(x, values, topology, **options)
        strided = torch.zeros(1, 3 * 90, dtype=dtype)[:, ::3]
        for sample, whole in zip(x, together, strict=True):
            strided[0] = sample
            alone, moved = (dispatch.forward(each, values, topology, **options)[0] for each in (sample[None], strided))
            assert torch.equal(alone, moved)
            # Sums of few columns are added in another order than those of many.
            torch.testing.assert_close(alone, whole)


def ragged(pattern, rows, columns):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, rows)[:, None]
    height = Pattern.parse(pattern).rows
    return mask[::height].repeat_interleave(height, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacked_operands_give_the_same_bits(isa, dtype, monkeypatch):
    def run():
        topology = Topology.random((40, 300), 0.1, "unstructured", torch.Generator().manual_seed(0))
        x, values = operand(96, 300, "column-major", 1, dtype), torch.linspace(-1, 1, topology.nnz, dtype=dtype)
        return dispatch.forward(x, values, topology)

    usual = run()
    forced(monkeypatch, Choice(4, 0, packed=False))
    assert torch.equal(run(), usual)


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
            torch.testing.assert_close(own[0], by_column[0])


@pytest.mark.parametrize("pattern", ["b1x2", "b1x8", "b2x4", "b8x16", "b16x2"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float16, torch.float32)], ids=str)
def test_blocks_equal_their_twin(isa, pattern, dtypes):
    for batch, layout in ((1, "row-major"), (20, "column-major"), (300, "strided")):
        for shape, density in (((48, 96), 0.3), ((16, 16), 1.0), ((32, 2048), 0.05)):
            topology = Topology.random(shape, density, pattern, torch.Generator().manual_seed(5))
            assert_parity(topology, batch, layout, *dtypes)


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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 7, 130, 300])
def test_contiguous_rows_hold_the_same_numbers(isa, batch, dtype, threads):
    torch.set_num_threads(threads)
    topology = Topology.random((96, 160), 0.3, generator=torch.Generator().manual_seed(0))
    x, grad = (operand(batch, side, "row-major", 3, dtype) for side in reversed(topology.shape))
    values, bias = torch.linspace(-1, 1, topology.nnz, dtype=dtype), torch.linspace(-2, 2, 96, dtype=dtype)
    for run in (
        lambda **asked: dispatch.forward(x, values, topology, bias, relu=True, **asked),
        lambda **asked: dispatch.input_grad(grad, values, topology, **asked),
    ):
        usual, by_rows = run(), run(rows=True)
        assert torch.equal(usual, by_rows)
        assert by_rows.is_contiguous()
        assert batch == 1 or usual.stride() == (1, batch)


def test_rows_that_are_no_whole_vectors_stay_features_first(isa):
    y = dispatch.forward(torch.ones(9, 4), torch.ones(40), Topology.full((10, 4)), rows=True)
    assert y.tolist() == [[4.0] * 10] * 9
    assert y.stride() == (1, 9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_pass_through_and_stay_in_their_sample(isa, dtype):
    topology = Topology.full((2, 2))
    x = torch.ones(4, 2, dtype=dtype)
    x[0, 0], x[2, 0] = float("nan"), float("inf")
    y = dispatch.forward(x, torch.ones(4, dtype=dtype), topology, relu=True)
    assert y[0].isnan().all()
    assert y[2].isinf().all()
    assert y[1::2].tolist() == [[2.0] * 2] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_as_torch_does(isa, dtype):
    # Every number in half precision, and all that lies half way between two of them.
    bits = torch.arange(1 << 16).to(torch.int32)
    halves = bits.to(torch.uint16).view(dtype).float()
    tiny = torch.finfo(torch.float32).smallest_normal  # smaller ones kernels flush to zero
    numbers = torch.cat((halves, (halves + halves.roll(-1)) / 2))
    numbers = numbers[~numbers.isnan() & ((numbers == 0) | (numbers.abs() >= tiny))]
    # Each one is a bias, a value of float32 beside nothing that is kept but a weight of 0.
    topology = Topology.full((len(numbers), 1))
    for batch in (1, 3, 40):
        y = dispatch.forward(torch.zeros(batch, 1, dtype=dtype), torch.zeros(len(numbers)), topology, numbers)
        assert torch.equal(y, numbers.to(dtype).expand(batch, -1))


def test_double_precision_is_torchs(isa):
    y = dispatch.forward(torch.ones(4, 2).double(), torch.ones(6).double(), Topology.full((3, 2)))
    assert y.dtype == torch.float64
    assert y.tolist() == [[2.0] * 3] * 4


@pytest.mark.parametrize("wrong", [torch.float16, torch.float64])
def test_values_are_of_the_inputs_dtype_or_float32(isa, wrong):
    topology, x = Topology.full((3, 2)), torch.ones(4, 2, dtype=torch.bfloat16)
    with pytest.raises(InvalidInput, match="or float32"):
        dispatch.forward(x, torch.ones(6, dtype=wrong), topology)
    with pytest.raises(InvalidInput, match="bias"):
        dispatch.forward(x, torch.ones(6), topology, torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(InvalidInput, match="gradient of values"):
        dispatch.value_grad(torch.ones(4, 3, dtype=torch.bfloat16), x, topology, wrong)
