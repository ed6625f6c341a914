"""Hypothesis strategies for what the library is about: patterns, masks that fit them, topologies, matrices."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import ROWS, Pattern
from pollard.formats.topology import Topology

vectors = st.sampled_from([Pattern(rows) for rows in ROWS])
blocks = st.sampled_from([Pattern.parse(name) for name in ("b1x4", "b2x2", "b4x8", "b16x2")])
runs = st.sampled_from([Pattern.parse(name) for name in ("1:2", "2:4", "1:4", "4:8", "2:3")])
grains = vectors | blocks
patterns = grains | runs
# The middle of the range, and the edges where code goes wrong: one grain in many, all but one, none, all.
densities = st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0])
seeds = st.integers(0, 2**31 - 1)


@st.composite
def shapes(draw: st.DrawFn, pattern: Pattern, smallest: int = 0, groups: int = 6, columns: int = 12) -> tuple[int, int]:
    """(out, in) that `pattern` divides, from `smallest` row groups and columns on."""
    unit = pattern.m or pattern.columns
    return draw(st.integers(smallest, groups)) * pattern.rows, draw(st.integers(smallest, columns)) * unit


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, int], pattern: Pattern = Pattern()) -> Tensor:
    """Bool `shape` that `pattern` fits, with some rows and columns emptied where it may keep nothing."""
    generator = torch.Generator().manual_seed(draw(seeds))
    if pattern.m:
        return Topology.random(shape, pattern.n / pattern.m, pattern, generator).mask()
    groups, columns = pattern.grid(shape)
    grains = torch.rand(groups, columns, generator=generator) < draw(densities)
    if draw(st.booleans()):
        grains &= torch.rand(groups, 1, generator=generator) < 0.5
        grains &= torch.rand(1, columns, generator=generator) < 0.5
    return pattern.spread(grains)


@st.composite
def topologies(draw: st.DrawFn, smallest: int = 0, of: st.SearchStrategy[Pattern] = patterns) -> Topology:
    """Any small topology: empty rows and columns, nothing kept, everything kept, sizes down to `smallest`."""
    pattern = draw(of)
    return Topology.from_mask(draw(masks(draw(shapes(pattern, smallest)), pattern)), pattern)


@st.composite
def wide_topologies(draw: st.DrawFn, of: tuple[str, ...] = ("unstructured", "v2", "b1x2", "b4x2")) -> Topology:
    """A few row groups about as wide as uint16 reaches; among what is kept are columns at both ends and in the middle."""
    pattern = Pattern.parse(draw(st.sampled_from(of)))
    groups, width = draw(st.integers(1, 3)), draw(st.sampled_from([65_535, 65_536, 65_537]))
    generator = torch.Generator().manual_seed(draw(seeds))
    drawn = torch.randint(groups * width, (draw(st.sampled_from([0, 9, 2000])),), generator=generator)
    ends = torch.tensor([0, 32_767, 32_768, width - 1]) + torch.arange(groups)[:, None] * width
    kept = ends[torch.rand(ends.shape, generator=generator) < 0.8]
    return Topology.from_positions(
        (groups * pattern.rows, width * pattern.columns), pattern, torch.cat((drawn, kept)).unique()
    )


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
    """Which grains stay of `topology`, bool, and what may come, as positions: none, some or all of either; some come back.

    Under N:M as many come to every M as are missing.
    """
    generator = torch.Generator().manual_seed(draw(seeds))
    stays = torch.rand(topology.grains, generator=generator) < draw(densities)
    free = torch.ones(topology.places, dtype=torch.bool)
    free[topology.positions()[stays]] = False
    absent, pattern = free.nonzero().view(-1), topology.pattern
    if pattern.m:
        absent = absent[torch.randperm(len(absent), generator=generator)]
        missing = pattern.n - torch.bincount(
            topology.positions()[stays] // pattern.m, minlength=topology.places // pattern.m
        )
        chosen = [absent[absent // pattern.m == run][:wanted] for run, wanted in enumerate(missing.tolist())]
        return stays, torch.cat([absent[:0], *chosen]).sort().values
    comes = torch.rand(len(absent), generator=generator) < draw(densities)
    return stays, absent[comes]
