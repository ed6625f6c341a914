"""Hypothesis strategies for what the library is about: patterns, masks that fit them, topologies, matrices."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import ROWS, Pattern
from pollard.formats.topology import Topology

patterns = st.sampled_from([Pattern(rows) for rows in ROWS])
# The middle of the range, and the edges where code goes wrong: one grain in many, all but one, none, all.
densities = st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0])
seeds = st.integers(0, 2**31 - 1)


@st.composite
def shapes(draw: st.DrawFn, pattern: Pattern, smallest: int = 0, groups: int = 6, columns: int = 12) -> tuple[int, int]:
    """(out, in) that `pattern` divides, from `smallest` row groups and columns on."""
    return draw(st.integers(smallest, groups)) * pattern.rows, draw(st.integers(smallest, columns))


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, int], pattern: Pattern = Pattern()) -> Tensor:
    """Bool `shape`, constant within the grains of `pattern`, with some rows and columns emptied."""
    generator = torch.Generator().manual_seed(draw(seeds))
    groups, columns = pattern.grain_shape(shape)
    grains = torch.rand(groups, columns, generator=generator) < draw(densities)
    if draw(st.booleans()):
        grains &= torch.rand(groups, 1, generator=generator) < 0.5
        grains &= torch.rand(1, columns, generator=generator) < 0.5
    return pattern.spread(grains)


@st.composite
def topologies(draw: st.DrawFn, smallest: int = 0) -> Topology:
    """Any small topology: empty rows and columns, nothing kept, everything kept, sizes down to `smallest`."""
    pattern = draw(patterns)
    return Topology.from_mask(draw(masks(draw(shapes(pattern, smallest)), pattern)), pattern)


@st.composite
def topology_pairs(draw: st.DrawFn) -> tuple[Topology, Topology]:
    """Two topologies of one shape and pattern."""
    pattern = draw(patterns)
    shape = draw(shapes(pattern))
    first, second = (Topology.from_mask(draw(masks(shape, pattern)), pattern) for _ in range(2))
    return first, second


@st.composite
def matrices(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> SparseMatrix:
    """Any small sparse matrix; no value is zero."""
    topology = draw(topologies())
    generator = torch.Generator().manual_seed(draw(seeds))
    return SparseMatrix(torch.rand(topology.nnz, generator=generator, dtype=dtype) + 0.5, topology)


@st.composite
def strided(draw: st.DrawFn, dense: Tensor) -> Tensor:
    """The matrix `dense` with other strides: row-major, column-major, or every second entry of a larger one."""
    match draw(st.sampled_from(["rows", "columns", "gaps"])):
        case "rows":
            return dense.contiguous()
        case "columns":
            return dense.t().contiguous().t()
        case _:
            wide = dense.new_zeros(2 * dense.shape[0], 2 * dense.shape[1])
            wide[::2, ::2] = dense
            return wide[::2, ::2]


@st.composite
def changes(draw: st.DrawFn, topology: Topology) -> tuple[Tensor, Tensor]:
    """Which grains stay of `topology`, bool, and what may come, as positions: none, some or all of either; some come back."""
    generator = torch.Generator().manual_seed(draw(seeds))
    stays = torch.rand(topology.grains, generator=generator) < draw(densities)
    free = torch.ones(topology.groups * topology.shape[1], dtype=torch.bool)
    free[topology.positions()[stays]] = False
    absent = free.nonzero().view(-1)
    comes = torch.rand(len(absent), generator=generator) < draw(densities)
    return stays, absent[comes]
