"""Index arrays by columns, where those of a topology go by rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pollard.formats.indices import Indices


@dataclass(frozen=True, slots=True, eq=False)
class Transpose:
    """A topology by columns: column `j` holds grains `row_pointers[j] : row_pointers[j + 1]` of `groups`, ascending.

    row_pointers: int32 `(width + 1,)`.
    groups: int32 `(grains,)`, the row group of each grain.
    permutation: int32 `(grains,)`, where each grain stands in the topology's own order.
    """

    row_pointers: Tensor
    groups: Tensor
    permutation: Tensor


def turned(indices: Indices, groups: int, width: int) -> Transpose:
    """The transpose of a topology with `groups` row groups and `width` columns of grains, by SciPy: the specification."""
    import scipy.sparse  # a tenth of a second that users who never train should not pay

    entries = np.arange(len(indices.columns), dtype=np.int32)
    by_row = scipy.sparse.csr_array((entries, *(array.numpy() for array in reversed(indices))), (groups, width))
    by_column = by_row.tocsc()
    arrays = (by_column.indptr, by_column.indices, by_column.data)
    return Transpose(*(torch.from_numpy(array.astype(np.int32, copy=False)) for array in arrays))
