"""A sparse matrix: values and where they stand, and its forms in torch and SciPy. Conversions, no arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.errors import InvalidInput, TopologyError
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class SparseMatrix:
    """`values` at the places that `topology` keeps; everything else is zero.

    values: contiguous 1-D floating `(nnz,)` on any device, grain by grain (see Topology); held, not copied.

    Conversions return detached copies, unless they say that they share. Raises InvalidInput where values do not fit.

    >>> SparseMatrix(torch.tensor([1.0, 2.0]), Topology.from_mask(torch.eye(2, dtype=torch.bool))).to_dense().tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """

    values: Tensor
    topology: Topology

    def __post_init__(self) -> None:
        wanted = f"a contiguous floating tensor ({self.topology.nnz},)"
        if not isinstance(self.values, Tensor):
            raise InvalidInput(f"values of type {type(self.values).__name__}", wanted, "Convert with torch.as_tensor.")
        found = f"values of {self.values.dtype} {tuple(self.values.shape)} on {self.values.device}"
        fits = self.values.is_floating_point() and self.values.shape == (self.topology.nnz,)
        if not fits or self.values.layout is not torch.strided:
            raise InvalidInput(found, wanted, "There is one value for each weight that the topology keeps.")
        if not self.values.is_contiguous():
            raise InvalidInput(f"strided {found}", wanted, "Call values.contiguous() first.")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.topology.shape

    @classmethod
    def from_dense(cls, weight: Tensor, topology: Topology | None = None) -> Self:
        """The entries of `weight` (out, in), of any strides, that `topology` keeps; by default those that are not zero.

        For a mask, pass `Topology.from_mask(mask, pattern)`. Raises InvalidInput where shapes differ.

        >>> SparseMatrix.from_dense(torch.tensor([[0.0, 3.0], [4.0, 0.0]])).values.tolist()
        [3.0, 4.0]
        """
        weight = _dense(weight)
        if topology is None:
            topology = Topology.from_mask(weight != 0)
        if weight.shape != topology.shape:
            raise InvalidInput(
                f"a weight {tuple(weight.shape)}", f"{topology.shape}", "Topology and weight must agree."
            )
        values, vectors = weight.new_empty(topology.nnz), topology.vectors
        grains = weight.unflatten(0, (vectors.groups, vectors.pattern.rows))
        held = values.view(vectors.grains, vectors.pattern.rows)
        for part, groups, columns in _pieces(vectors):
            held[part] = grains[groups, :, columns]
        return cls(values, topology)

    def to_dense(self) -> Tensor:
        """`(out, in)`, zeros included."""
        vectors, rows = self.topology.vectors, self.topology.pattern.rows
        weight = self.values.detach().new_zeros(self.shape)
        grains = weight.unflatten(0, (vectors.groups, rows))
        held = self.values.detach().view(vectors.grains, rows)
        for part, groups, columns in _pieces(vectors):
            grains[groups, :, columns] = held[part]
        return weight

    def unstructured(self) -> SparseMatrix:
        """The same weights, zeros among them included, under the unstructured pattern; itself where it has it already.

        >>> matrix = SparseMatrix.from_dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), Topology.full((2, 2), "v2"))
        >>> matrix.values.tolist(), matrix.unstructured().values.tolist()
        ([1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0])
        """
        vectors = self.topology.vectors
        if vectors.pattern.rows == 1:
            return self if vectors is self.topology else SparseMatrix(self.values, vectors)
        by_row = _to_scipy(vectors, _numbered(vectors)).tocsr()
        topology = Topology.adopt(self.shape, Pattern(), _tensor(by_row.indptr), _tensor(by_row.indices))
        return SparseMatrix(self.values.detach().index_select(0, _tensor(by_row.data, self.values)), topology)

    def laid_on(self, pattern: str | Pattern) -> SparseMatrix:
        """The same weights on the grains of `pattern` that hold any of them, filled up with explicit zeros.

        Raises PatternError where the pattern does not divide the weight, or `N:M` has no room for what a run holds.

        >>> matrix = SparseMatrix.from_dense(torch.eye(2)).laid_on("v2")
        >>> str(matrix.topology.pattern), matrix.values.tolist()
        ('v2', [1.0, 0.0, 0.0, 1.0])
        """
        pattern = Pattern.parse(pattern)
        pattern.grid(self.shape)
        flat = self.unstructured()
        if pattern.m:
            return _filled_up(flat, pattern)
        if pattern.size == 1:
            return flat
        # Numbered from 1, so that the zeros that fill a block up point at the zero put before the values.
        blocks = _to_scipy(flat.topology, _numbered(flat.topology) + 1).tobsr(blocksize=(pattern.rows, pattern.columns))
        blocks.sort_indices()
        topology = Topology.adopt(self.shape, pattern, _tensor(blocks.indptr), _tensor(blocks.indices))
        padded = torch.cat((flat.values.new_zeros(1), flat.values.detach()))
        by_column = np.ascontiguousarray(blocks.data.transpose(0, 2, 1)).reshape(-1)
        return SparseMatrix(padded.index_select(0, _tensor(by_column, padded)), topology)

    def moved(self, topology: Topology) -> SparseMatrix:
        """The same values where `topology` keeps them too, zero where it keeps others; of the same shape and pattern.

        >>> matrix = SparseMatrix(torch.tensor([1.0, 2.0]), Topology.from_positions((1, 4), "unstructured", torch.tensor([0, 2])))
        >>> matrix.moved(Topology.from_positions((1, 4), "unstructured", torch.tensor([2, 3]))).values.tolist()
        [2.0, 0.0]
        """
        change, size = self.topology.difference(topology), topology.pattern.size
        held = self.values.detach().view(-1, size)
        values = held.new_zeros(topology.grains, size)
        values[change.kept_there.long()] = held[change.kept_here.long()]
        return SparseMatrix(values.view(-1), topology)

    @classmethod
    def from_torch(cls, matrix: Tensor, pattern: str | Pattern = "unstructured") -> SparseMatrix:
        """From a 2-D torch CSR or COO tensor; duplicates in COO are summed, explicit zeros stay, `pattern` is `laid_on`.

        Raises InvalidInput on another layout, TopologyError where the indices of a CSR tensor are unsorted.

        >>> SparseMatrix.from_torch(torch.eye(2).to_sparse_coo()).topology.indices.columns.tolist()
        [0, 1]
        """
        if not isinstance(matrix, Tensor) or matrix.layout not in (torch.sparse_csr, torch.sparse_coo):
            layout = matrix.layout if isinstance(matrix, Tensor) else type(matrix).__name__
            raise InvalidInput(f"a matrix of layout {layout}", "torch.sparse_csr or sparse_coo", "Convert it first.")
        if matrix.dim() != 2 or matrix.dense_dim():
            raise InvalidInput(f"a sparse tensor {tuple(matrix.shape)}", "a matrix of scalars", "Convert each alone.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)  # torch calls it beta
            by_row = matrix.detach().coalesce().to_sparse_csr() if matrix.is_sparse else matrix.detach()
        shape = (by_row.shape[0], by_row.shape[1])
        topology = Topology(shape, Pattern(), by_row.crow_indices().cpu(), by_row.col_indices().cpu())
        return cls(by_row.values().clone(), topology).laid_on(pattern)

    def to_torch_csr(self) -> Tensor:
        """A torch CSR tensor with int32 indices, grains taken apart and explicit zeros kept."""
        flat = self.unstructured()
        arrays = (flat.topology.row_pointers, flat.topology.columns)
        pointers, columns = (_tensor(array, flat.values) for array in arrays)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)  # torch calls it beta
            return torch.sparse_csr_tensor(
                pointers, columns, flat.values.detach().clone(), self.shape, check_invariants=False
            )

    def to_torch_coo(self) -> Tensor:
        """A coalesced torch COO tensor, grains taken apart and explicit zeros kept."""
        flat = self.unstructured()
        rows = torch.arange(self.shape[0], dtype=torch.int64, device="cpu").repeat_interleave(flat.topology.fan_in())
        indices = torch.stack((rows, flat.topology.indices.columns.long())).to(flat.values.device)
        return torch.sparse_coo_tensor(
            indices, flat.values.detach().clone(), self.shape, is_coalesced=True, check_invariants=False
        )

    @classmethod
    def from_scipy(cls, matrix: Any, pattern: str | Pattern = "unstructured") -> SparseMatrix:
        """From any 2-D SciPy sparse matrix or array; duplicates are summed, explicit zeros stay, `pattern` is `laid_on`.

        >>> import scipy.sparse
        >>> SparseMatrix.from_scipy(scipy.sparse.eye_array(2)).to_dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        import scipy.sparse  # a tenth of a second that users of no SciPy should not pay

        if not scipy.sparse.issparse(matrix) or matrix.ndim != 2:
            raise InvalidInput(
                f"a {type(matrix).__name__}", "a 2-D scipy.sparse matrix", "Use from_dense or from_torch."
            )
        by_row = scipy.sparse.csr_array(matrix, copy=True)
        try:
            by_row.check_format(full_check=True)
        except ValueError as error:
            raise TopologyError(f"a SciPy matrix with {error}", "a valid one", "Build it again.") from error
        by_row.sum_duplicates()
        values, pointers, columns = (_tensor(array) for array in (by_row.data, by_row.indptr, by_row.indices))
        return cls(values, Topology.adopt(by_row.shape, Pattern(), pointers, columns)).laid_on(pattern)

    def to_scipy(self) -> Any:
        """A `csr_array`, or for `vN` and `bNxC` a `bsr_array` of N x 1 blocks, that shares values with this matrix.

        Raises InvalidInput unless values are float32 or float64.
        """
        if self.values.dtype not in (torch.float32, torch.float64):
            raise InvalidInput(f"values of {self.values.dtype}", "float32 or float64", "Call values.float() first.")
        return _to_scipy(self.topology.vectors, self.values.detach().cpu().numpy())


def _filled_up(flat: SparseMatrix, pattern: Pattern) -> SparseMatrix:
    """`flat` on an N:M `pattern`, which keeps so much that a mask costs no more than its values."""
    topology = Topology.covering(flat.topology.mask(), pattern)
    values = flat.values.new_zeros(topology.nnz)
    values[torch.searchsorted(topology.positions(), flat.topology.positions())] = flat.values.detach()
    return SparseMatrix(values, topology)


def _to_scipy(topology: Topology, entries: NDArray[Any]) -> Any:
    """`entries` (nnz,) at the places of `topology`, of grains one column wide, as SciPy holds them."""
    import scipy.sparse  # a tenth of a second that users of no SciPy should not pay

    rows = topology.pattern.rows
    indices = (topology.indices.columns.numpy(), topology.indices.row_pointers.numpy())
    if rows == 1:
        return scipy.sparse.csr_array((entries, *indices), topology.shape)
    return scipy.sparse.bsr_array((entries.reshape(-1, rows, 1), *indices), topology.shape, blocksize=(rows, 1))


def _numbered(topology: Topology) -> NDArray[Any]:
    return np.arange(topology.nnz, dtype=np.int32 if topology.nnz < 2**31 - 1 else np.int64)


def _tensor(array: NDArray[Any] | Tensor, like: Tensor | None = None) -> Tensor:
    """`array` as a tensor, on the device of `like`."""
    made = array if isinstance(array, Tensor) else torch.from_numpy(array)
    return made if like is None else made.to(like.device)


def _dense(weight: Tensor) -> Tensor:
    if not isinstance(weight, Tensor) or weight.layout is not torch.strided or weight.dim() != 2:
        raise InvalidInput(
            f"{type(weight).__name__}", "a dense weight (out, in)", "Use from_torch for a sparse tensor."
        )
    return weight.detach()


def _pieces(topology: Topology) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Ranges of grains, and the group and column of each, in pieces whose int64 indices cost no memory to speak of."""
    pointers = topology.indices.row_pointers.numpy()
    step = max(1, _CHUNK // max(1, topology.shape[1]))
    for first in range(0, topology.groups, step):
        bounds = pointers[first : first + step + 1]
        part = slice(int(bounds[0]), int(bounds[-1]))
        groups = np.repeat(np.arange(first, first + len(bounds) - 1), np.diff(bounds))
        yield part, torch.from_numpy(groups), topology.indices.columns[part].long()
