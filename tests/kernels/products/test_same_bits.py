"""Results that have the same bits: for any number of threads, any choice of a kernel, wherever an operand or a result lies."""

import itertools

import pytest
import torch

from parity import DTYPES, forced, forced_panels, operand, products
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code.target import TARGETS
from pollard.kernels.products import dispatch
from pollard.kernels.products.tuning import Choice


@pytest.mark.pairwise
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


@pytest.mark.pairwise
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


@pytest.mark.pairwise
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


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["unstructured", "v2", "v4", "v8", "v16"])
def test_one_sample_is_what_it_is_in_a_batch_and_has_the_same_bits_wherever_it_lies(isa, pattern, dtype):
    # Rows of all lengths: those side by side end at different places.
    topology = Topology.from_mask(ragged(pattern, 112, 90), pattern)
    values, bias = torch.linspace(-1, 1, topology.nnz, dtype=dtype), torch.linspace(-2, 2, 112, dtype=dtype)
    x = operand(5, 90, "row-major", 3, dtype)
    for options in ({}, {"bias": bias}, {"bias": bias, "activation": "relu"}):
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


@pytest.mark.pairwise
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 7, 130, 300])
def test_contiguous_rows_hold_the_same_numbers(isa, batch, dtype, threads):
    torch.set_num_threads(threads)
    topology = Topology.random((96, 160), 0.3, generator=torch.Generator().manual_seed(0))
    x, grad = (operand(batch, side, "row-major", 3, dtype) for side in reversed(topology.shape))
    values, bias = torch.linspace(-1, 1, topology.nnz, dtype=dtype), torch.linspace(-2, 2, 96, dtype=dtype)
    for run in (
        lambda **asked: dispatch.forward(x, values, topology, bias, activation="relu", **asked),
        lambda **asked: dispatch.input_grad(grad, values, topology, **asked),
    ):
        usual, by_rows = run(), run(rows=True)
        assert torch.equal(usual, by_rows)
        assert by_rows.is_contiguous()
        assert batch == 1 or usual.stride() == (1, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [False, True])
def test_both_gradients_at_once_are_those_of_either(isa, dtype, rows):
    topology = Topology.random((96, 160), 0.3, generator=torch.Generator().manual_seed(0))
    x, grad = (operand(30, side, "row-major", 3, dtype) for side in reversed(topology.shape))
    values = torch.linspace(-1, 1, topology.nnz)
    dx, dvalues = dispatch.gradients(grad, x, values.to(dtype), topology, rows=rows)
    assert torch.equal(dx, dispatch.input_grad(grad, values.to(dtype), topology, rows=rows))
    assert torch.equal(dvalues, dispatch.value_grad(grad, x, topology))
    assert dx.is_contiguous() is rows
    assert dispatch.gradients(grad, x, values, topology)[1].dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 10, 35])
def test_rows_that_are_no_whole_vectors_are_contiguous_too(isa, features, dtype):
    topology = Topology.full((features, 4))
    x, values = torch.ones(9, 4, dtype=dtype), torch.arange(topology.nnz).to(dtype)
    y = dispatch.forward(x, values, topology, rows=True)
    assert y.tolist() == [values.view(features, 4).sum(1).tolist()] * 9
    assert y.stride() == (features, 1)
