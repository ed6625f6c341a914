from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput, PatternError, TopologyError
from pollard.formats import matrix as module
from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from strategies import masks, matrices, patterns, shapes, strided

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def same(first: SparseMatrix, second: SparseMatrix) -> bool:
    return first.topology.same_as(second.topology) and torch.equal(first.values, second.values)


@given(st.data(), DTYPES)
def test_dense_of_any_strides_and_back(data, dtype):
    matrix = data.draw(matrices(dtype))
    dense = matrix.to_dense()
    assert dense.dtype == dtype
    assert torch.equal(dense != 0, matrix.topology.mask())
    assert torch.equal(dense.reshape(-1)[matrix.topology.weight_positions()], matrix.values)
    assert same(SparseMatrix.from_dense(data.draw(strided(dense)), matrix.topology), matrix)


@given(matrices())
def test_pieces_make_no_difference(matrix):
    dense = matrix.to_dense()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 5)
        assert torch.equal(matrix.to_dense(), dense)
        assert same(SparseMatrix.from_dense(dense, matrix.topology), matrix)


@given(matrices())
def test_without_a_topology_what_is_not_zero_is_kept(matrix):
    dense = matrix.to_dense()
    taken = SparseMatrix.from_dense(dense)
    assert torch.equal(taken.topology.mask(), dense != 0)
    assert torch.equal(taken.to_dense(), dense)


@given(st.data())
def test_a_dense_weight_loses_what_its_topology_drops(data):
    pattern = data.draw(patterns)
    mask = data.draw(masks(data.draw(shapes(pattern)), pattern))
    weight = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SparseMatrix.from_dense(weight, Topology.from_mask(mask, pattern)).to_dense(), weight * mask)


@given(st.data(), DTYPES)
def test_torch_layouts_and_back(data, dtype):
    matrix = data.draw(matrices(dtype))
    dense = matrix.to_dense()
    csr, coo = matrix.to_torch_csr(), matrix.to_torch_coo()
    assert (csr.layout, coo.layout) == (torch.sparse_csr, torch.sparse_coo)
    assert coo.is_coalesced()
    for tensor in (csr, coo):
        assert torch.equal(tensor.to_dense(), dense)
        assert same(SparseMatrix.from_torch(tensor, matrix.topology.pattern), matrix)


@given(matrices())
def test_torch_accepts_the_indices(matrix):
    csr, coo = matrix.to_torch_csr(), matrix.to_torch_coo()
    torch.sparse_csr_tensor(csr.crow_indices(), csr.col_indices(), csr.values(), csr.shape, check_invariants=True)
    torch.sparse_coo_tensor(coo.indices(), coo.values(), coo.shape, check_invariants=True)


@given(matrices())
def test_scipy_and_back(matrix):
    held = matrix.to_scipy()
    held.check_format(full_check=True)
    assert np.array_equal(held.toarray(), matrix.to_dense())
    assert np.shares_memory(held.data, matrix.values.numpy()) or not matrix.values.numel()
    for form in (held, held.tocoo(), held.tocsc(), scipy.sparse.csr_matrix(held)):
        assert same(SparseMatrix.from_scipy(form, matrix.topology.pattern), matrix)


@given(st.data())
def test_any_mask_laid_on_a_pattern_is_covered(data):
    pattern = data.draw(patterns)
    shape = data.draw(shapes(pattern))
    mask = data.draw(masks(shape))
    if pattern.m:
        mask &= data.draw(masks(shape, pattern))
    weight = mask * (torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) + 0.5)
    laid = SparseMatrix.from_dense(weight).laid_on(pattern)
    assert laid.topology.same_as(Topology.covering(mask, pattern))
    assert torch.equal(laid.to_dense(), weight)


@given(st.data())
def test_between_patterns_the_weights_stay(data):
    matrix = data.draw(matrices())
    flat = matrix.unstructured()
    assert flat.topology.same_as(Topology.from_mask(matrix.topology.mask()))
    assert torch.equal(flat.to_dense(), matrix.to_dense())
    assert same(flat.laid_on(matrix.topology.pattern), matrix)


def test_duplicates_are_summed():
    coo = torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2), check_invariants=True)
    assert SparseMatrix.from_torch(coo).values.tolist() == [3.0]
    held = scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), (2, 2))
    assert SparseMatrix.from_scipy(held).values.tolist() == [3.0]
    assert held.nnz == 2, "the caller's matrix has changed"


def test_the_callers_arrays_are_left_alone():
    for matrix in (torch.eye(3).to_sparse_coo(), SparseMatrix.from_dense(torch.eye(3)).to_torch_csr()):
        taken = SparseMatrix.from_torch(matrix)
        taken.values.zero_()
        assert torch.equal(matrix.to_dense(), torch.eye(3))


@pytest.mark.parametrize(
    "values, message",
    [
        (torch.rand(3), r"\(3,\).*\(4,\)"),
        (torch.rand(2, 2), r"\(2, 2\)"),
        (torch.arange(4), "int64"),
        (torch.rand(8)[::2], "contiguous"),
        (torch.rand(4).to_sparse(), "floating"),
        ([1.0, 2.0, 3.0, 4.0], "type list"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, message):
    with pytest.raises(InvalidInput, match=message):
        SparseMatrix(values, Topology.full((2, 2)))


def test_a_dense_weight_of_another_shape_is_refused():
    with pytest.raises(InvalidInput, match=r"\(2, 3\).*\(2, 2\)"):
        SparseMatrix.from_dense(torch.rand(2, 3), Topology.full((2, 2)))
    for weight in (torch.rand(4), torch.eye(2).to_sparse(), [[1.0]]):
        with pytest.raises(InvalidInput, match="dense weight"):
            SparseMatrix.from_dense(weight)


@pytest.mark.parametrize("matrix", [torch.eye(2), [[1.0]]])
def test_other_layouts_than_csr_and_coo_are_refused(matrix):
    with pytest.raises(InvalidInput, match="layout"):
        SparseMatrix.from_torch(matrix)


@pytest.mark.parametrize("matrix", [torch.ones(3).to_sparse(), torch.ones(2, 2, 2).to_sparse(2)])
def test_sparse_tensors_that_are_no_matrix_are_refused(matrix):
    with pytest.raises(InvalidInput, match="matrix of scalars"):
        SparseMatrix.from_torch(matrix)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_unsorted_csr_is_refused():
    csr = torch.sparse_csr_tensor([0, 2, 2], [1, 0], [1.0, 2.0], (2, 2), check_invariants=False)
    with pytest.raises(TopologyError, match="column 0 after 1"):
        SparseMatrix.from_torch(csr)


def test_damaged_and_foreign_scipy_matrices_are_refused():
    held = scipy.sparse.csr_array(np.eye(2))
    held.indices[1] = 7
    with pytest.raises(TopologyError, match="SciPy matrix"):
        SparseMatrix.from_scipy(held)
    with pytest.raises(InvalidInput, match="ndarray"):
        SparseMatrix.from_scipy(np.eye(2))
    with pytest.raises(InvalidInput, match="int64"):
        SparseMatrix.from_scipy(scipy.sparse.csr_array(np.eye(2, dtype=np.int64)))


def test_what_scipy_cannot_hold_is_refused():
    with pytest.raises(InvalidInput, match="float32 or float64"):
        SparseMatrix.from_dense(torch.eye(2, dtype=torch.bfloat16)).to_scipy()


def test_a_pattern_that_does_not_divide_is_refused():
    with pytest.raises(PatternError, match="multiple of 2"):
        SparseMatrix.from_dense(torch.eye(3)).laid_on("v2")


def test_shape():
    assert SparseMatrix.from_dense(torch.rand(2, 3)).shape == (2, 3)
