"""Which grains of a weight are kept: frozen index arrays, checked once, so that kernels may trust them blindly."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.errors import TopologyError
from pollard.formats.difference import Difference, Rows, compare
from pollard.formats.indices import (
    Indices,
    check_count,
    check_density,
    check_runs,
    checked_columns,
    checked_frame,
    checked_pointers,
    checked_positions,
    grains_of,
    index_dtype,
    own,
    signature,
)
from pollard.formats.pattern import Pattern
from pollard.formats.positions import complement, nonzero, rows_of, slices
from pollard.formats.rewiring import Flags, checked_change, rewire
from pollard.formats.sampling import Integers, sample, sample_runs
from pollard.formats.transpose import Transpose, turned


class Topology:
    """The kept grains of a weight of `shape` (out, in), in CSR order over the grid of its grains.

    A pattern with grains of R x C weights lays a grid of `groups` = out / R rows and `width` = in / C columns over the weight.
    Group `i` of it holds the grains `row_pointers[i] : row_pointers[i + 1]`, and grain `g` lies in column `columns[g]` of the
    grid. Values that go with a topology are 1-D `(nnz,)`, grain by grain, and in a grain column by column:
    `values[(g * C + c) * R + r] == weight[R * i + r, C * columns[g] + c]`.

    shape: (out, in), each at most `2**31 - 1`. pattern: a Pattern or its name.
    row_pointers: int32 `(groups + 1,)`. columns: int32 `(grains,)`, strictly ascending within a group; under `N:M` exactly
    N of every M. Up to a width of 65,536 columns are held as uint16.

    int64 input is taken where it fits. The arrays are copied, and nobody can write to them again: `row_pointers` and
    `columns` are copies at each access. So copies of a layer, plans and kernels share a topology without a care.
    Compared and hashed by identity; `same_as` compares contents.
    Raises TopologyError where the arrays are no such matrix, PatternError where the pattern does not divide the rows.

    >>> topology = Topology((2, 3), "unstructured", torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]))
    >>> topology
    Topology(shape=(2, 3), pattern='unstructured', grains=3, density=0.5)
    >>> topology.mask().int().tolist()
    [[1, 0, 1], [0, 1, 0]]
    """

    shape: tuple[int, int]
    pattern: Pattern
    indices: Indices  # the arrays themselves, for who only reads: formats and kernels
    handed: Indices  # the same to operators

    def __init__(self, shape: tuple[int, int], pattern: str | Pattern, row_pointers: Tensor, columns: Tensor) -> None:
        made = type(self).adopt(shape, pattern, own(row_pointers), own(columns))
        self.__dict__.update(made.__dict__)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a topology is frozen: {name!r} cannot be set; make another one")

    @classmethod
    def adopt(cls, shape: tuple[int, int], pattern: str | Pattern, row_pointers: Tensor, columns: Tensor) -> Self:
        """As the constructor, but contiguous arrays of the dtypes held are taken over, not copied: nobody may write to them again."""
        shape, pattern, (groups, width) = checked_frame(shape, pattern)
        row_pointers = checked_pointers(row_pointers, groups)
        columns = checked_columns(columns, row_pointers, width)
        check_runs(row_pointers, columns, width, pattern)
        return cls.trusted(shape, pattern, row_pointers, columns)

    @classmethod
    def from_mask(cls, mask: Tensor, pattern: str | Pattern = "unstructured") -> Self:
        """The grains that bool `mask` (out, in), True = keep, holds; any strides.

        Raises PatternError where the mask keeps only a part of a grain, or not N of every M: `covering` takes such masks.

        >>> Topology.from_mask(torch.tensor([[True, False], [True, False]]), "v2").columns.tolist()
        [0]
        """
        return cls._keeping(*grains_of(mask, pattern, partial=False))

    @classmethod
    def covering(cls, mask: Tensor, pattern: str | Pattern) -> Self:
        """The grains with at least one weight that bool `mask` (out, in) keeps; `waste_factor` says what that costs.

        Under `N:M` the first of those that the mask does not keep fill up what is missing; PatternError where it keeps more.

        >>> Topology.covering(torch.eye(2, dtype=torch.bool), "v2").mask().tolist()
        [[True, True], [True, True]]
        """
        return cls._keeping(*grains_of(mask, pattern, partial=True))

    @classmethod
    def from_positions(cls, shape: tuple[int, int], pattern: str | Pattern, positions: Tensor) -> Self:
        """The grains at `positions`: flat `group * width + column`, integers `(grains,)`, strictly ascending.

        Raises TopologyError where positions are out of order, repeated or out of range.

        >>> Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4])).columns.tolist()
        [0, 2, 1]
        """
        shape, pattern, (groups, width) = checked_frame(shape, pattern)
        ascending = checked_positions(positions, groups * width)
        return cls._from_ascending(shape, pattern, len(ascending), slices(ascending.numpy()))

    @classmethod
    def random(
        cls,
        shape: tuple[int, int],
        density: float,
        pattern: str | Pattern = "unstructured",
        generator: torch.Generator | None = None,
    ) -> Self:
        """`round(density * grains)` grains out of all, every such choice equally likely, `density` in (0, 1].

        Memory is proportional to what is kept, so a weight too large to exist can be drawn from. The same generator
        state gives the same topology. Raises InvalidInput on another density, PatternError on one that is not N / M under
        `N:M`, TopologyError past `2**31 - 1` grains.

        >>> Topology.random((10**6, 10**6), 1e-9, generator=torch.Generator().manual_seed(0)).grains
        1000
        """
        shape, pattern, (groups, width) = checked_frame(shape, pattern)
        check_density(density, pattern)
        total = groups * width
        count = round(density * total)
        check_count(count)
        if pattern.m:
            runs = sample_runs(total // pattern.m, pattern.n, pattern.m, generator)
            return cls._from_ascending(shape, pattern, count, runs)
        if 2 * count <= total:
            return cls._from_ascending(shape, pattern, count, slices(sample(total, count, generator)))
        dropped = sample(total, total - count, generator)
        return cls._from_ascending(shape, pattern, count, complement(dropped, total))

    @classmethod
    def full(cls, shape: tuple[int, int], pattern: str | Pattern = "unstructured") -> Self:
        """Every grain kept; PatternError under `N:M`, which never keeps all.

        >>> Topology.full((2, 2)).columns.tolist()
        [0, 1, 0, 1]
        """
        shape, pattern, (groups, width) = checked_frame(shape, pattern)
        check_density(1.0, pattern)
        check_count(groups * width)
        row_pointers = torch.arange(groups + 1, dtype=torch.int32, device="cpu").mul_(width)
        columns = torch.arange(width, dtype=torch.int32, device="cpu").to(index_dtype(width)).repeat(groups)
        return cls.trusted(shape, pattern, row_pointers, columns)

    @classmethod
    def _keeping(cls, shape: tuple[int, int], pattern: Pattern, flat: Flags) -> Self:
        count = int(np.count_nonzero(flat))
        check_count(count)
        return cls._from_ascending(shape, pattern, count, nonzero(flat))

    @classmethod
    def _from_ascending(cls, shape: tuple[int, int], pattern: Pattern, count: int, chunks: Iterable[Integers]) -> Self:
        """From `count` strictly ascending grain positions, in chunks none of which is empty."""
        pointers, columns = map(torch.from_numpy, rows_of(pattern.grid(shape), count, chunks))
        check_runs(pointers, columns, pattern.grid(shape)[1], pattern)
        return cls.trusted(shape, pattern, pointers, columns)

    @classmethod
    def trusted(cls, shape: tuple[int, int], pattern: Pattern, row_pointers: Tensor, columns: Tensor) -> Self:
        """As `adopt`, and unchecked: only for arrays that are right by the way they were made."""
        made = object.__new__(cls)
        held = Indices(row_pointers, columns.to(index_dtype(pattern.grid(shape)[1])))
        made.__dict__.update(shape=shape, pattern=pattern, indices=held, handed=held.handed())
        return made

    def __repr__(self) -> str:
        told = (f"shape={self.shape}", f"pattern='{self.pattern}'", f"grains={self.grains}")
        return f"Topology({', '.join(told)}, density={self.density:.4g})"

    def _repr_html_(self) -> str:
        from pollard.tables import html_topology  # here: importing pollard stays light

        return html_topology(self.shape, str(self.pattern), self.nnz, self.fan_in())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # As bytes: a tensor's own attributes, which may lead back here, stay behind, and torch.package wants no numpy.
        arrays = (array.numpy().astype("<i4", copy=False).tobytes() for array in self.indices)
        return _restore, (type(self), self.shape, str(self.pattern), *arrays)

    @property
    def row_pointers(self) -> Tensor:
        """Where each row group begins, and where the last one ends, int32 `(groups + 1,)`: a copy."""
        return self.indices.row_pointers.clone()

    @property
    def columns(self) -> Tensor:
        """The column of each grain, int32 `(grains,)`: a copy."""
        return self.indices.columns.to(torch.int32, copy=True)

    @property
    def groups(self) -> int:
        """Row groups, `out / R`."""
        return self.shape[0] // self.pattern.rows

    @property
    def width(self) -> int:
        """Columns of grains, `in / C`."""
        return self.shape[1] // self.pattern.columns

    @property
    def places(self) -> int:
        """Grains of the dense weight, `groups * width`."""
        return self.groups * self.width

    @property
    def grains(self) -> int:
        """How many grains are kept."""
        return len(self.indices.columns)

    @property
    def nnz(self) -> int:
        """How many weights are kept, `grains * R * C`."""
        return self.grains * self.pattern.size

    @property
    def vectors(self) -> Topology:
        """The same weights, in the same order, as grains one column wide: what products read; itself where it is that already.

        >>> Topology.full((2, 4), "b2x2").vectors
        Topology(shape=(2, 4), pattern='v2', grains=4, density=1)
        """
        return self._cut if self.pattern.columns > 1 or self.pattern.m else self

    @cached_property
    def _cut(self) -> Topology:
        (row_pointers, columns), width = self.indices, self.pattern.columns
        if width > 1:
            check_count(width * len(columns))
            row_pointers = row_pointers * width
            columns = (columns.int()[:, None] * width + torch.arange(width, dtype=torch.int32, device="cpu")).view(-1)
        return Topology.trusted(self.shape, Pattern(self.pattern.rows), row_pointers, columns)

    @property
    def density(self) -> float:
        """Fraction of weights kept, `nnz / (out * in)`; 0 for a weight without entries."""
        return self.nnz / max(math.prod(self.shape), 1)

    @property
    def bytes(self) -> int:
        """Bytes of index arrays held now: pointers and columns, and what has been made of them for products."""
        cut = self.__dict__.get("_cut", self)
        made = [each.__dict__["_transposed"] for each in (self, cut) if "_transposed" in each.__dict__]
        turned = [array for each in made for array in (each.row_pointers, each.groups, each.permutation)]
        return sum({id(array): array.nbytes for array in (*self.indices, *cut.indices, *turned)}.values())

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that stand for the contents: BLAKE2b over shape, pattern and index arrays."""
        digest = hashlib.blake2b(f"{self.shape} {self.pattern} ".encode(), digest_size=16)
        for array in self.indices:
            digest.update(array.numpy().astype("<i4", copy=False).data)
        return digest.hexdigest()

    @cached_property
    def signature(self) -> Tensor:
        """As `fingerprint`, many times as fast and no proof against malice: 8 whole numbers below 256, float32.

        As floats they survive what is done to buffers: a mean of equal ones is the same again, and so is half precision.
        """
        return signature(self.indices, f"{self.shape} {self.pattern}")

    def same_as(self, other: Topology) -> bool:
        """Whether `other` keeps the same grains of the same shape under the same pattern."""
        return self is other or (
            self.shape == other.shape
            and self.pattern == other.pattern
            and all(torch.equal(*pair) for pair in zip(self.indices, other.indices, strict=True))
        )

    def positions(self, only: Tensor | None = None) -> Tensor:
        """Flat grain positions `group * width + column`, ascending int64 `(grains,)`; of those in bool `only` `(grains,)`.

        >>> full = Topology.full((4, 2), "v2")
        >>> full.positions().tolist(), full.positions(torch.tensor([True, False, False, True])).tolist()
        ([0, 1, 2, 3], [0, 3])
        """
        if only is None:
            return torch.from_numpy(self._group_starts(self.width) + self.indices.columns.numpy())
        chosen = np.flatnonzero(only.numpy())
        counts = np.diff(np.searchsorted(chosen, self.indices.row_pointers.numpy()))
        starts = np.repeat(np.arange(self.groups, dtype=np.int64) * self.width, counts)
        return torch.from_numpy(starts + self.indices.columns.numpy()[chosen])

    def weight_positions(self) -> Tensor:
        """Flat weight positions `row * in + column` of every value, int64 `(nnz,)` in the order of values.

        >>> Topology.full((4, 2), "v2").weight_positions().tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
        """
        if self.vectors is not self:
            return self.vectors.weight_positions()
        if self.pattern.rows == 1:
            return self.positions()
        top = self._group_starts(self.pattern.rows * self.shape[1]) + self.indices.columns.numpy()
        below = np.arange(self.pattern.rows, dtype=np.int64) * self.shape[1]
        return torch.from_numpy((top[:, None] + below).reshape(-1))

    def _group_starts(self, step: int) -> NDArray[np.int64]:
        """`step` times its row group, for every grain."""
        return np.repeat(np.arange(self.groups, dtype=np.int64) * step, np.diff(self.indices.row_pointers.numpy()))

    def mask(self) -> Tensor:
        """Bool `(out, in)`, True = keep. One byte a weight: for small things and tests."""
        grains = torch.zeros(self.places, dtype=torch.bool, device="cpu")
        grains[self.positions()] = True
        return self.pattern.spread(grains.view(self.groups, self.width))

    def fan_in(self) -> Tensor:
        """Weights kept in each row, int64 `(out,)`.

        >>> Topology.from_mask(torch.eye(3, dtype=torch.bool)).fan_in().tolist()
        [1, 1, 1]
        """
        per_group = self.indices.row_pointers.diff().long() * self.pattern.columns
        return per_group.repeat_interleave(self.pattern.rows)

    def transpose(self) -> Transpose:
        """The same grains by columns; made once, then kept.

        >>> by_column = Topology.from_mask(torch.tensor([[True, True], [True, False]])).transpose()
        >>> by_column.row_pointers.tolist(), by_column.groups.tolist(), by_column.permutation.tolist()
        ([0, 2, 3], [0, 1, 0], [0, 2, 1])
        """
        made: Transpose | None = self.__dict__.get("_transposed")
        if made is None:
            made = self.__dict__["_transposed"] = turned(self.indices, self.groups, self.width)
        return made

    def drop_derived(self) -> None:
        """Give the memory of the transpose and of `vectors` back; they are made again when they are asked for."""
        for made in ("_transposed", "_cut"):
            self.__dict__.pop(made, None)

    def difference(self, other: Topology) -> Difference:
        """Which grains stay, go and come on the way from this topology to `other`, in one linear merge.

        Raises TopologyError where shape or pattern differ.

        >>> here = Topology.from_positions((1, 5), "unstructured", torch.tensor([0, 1, 3]))
        >>> there = Topology.from_positions((1, 5), "unstructured", torch.tensor([1, 2, 3, 4]))
        >>> change = here.difference(there)
        >>> change.kept_here.tolist(), change.kept_there.tolist(), change.dropped.tolist(), change.grown.tolist()
        ([1, 2], [0, 2], [0], [1, 3])
        """
        if self.shape != other.shape or self.pattern != other.pattern:
            raise TopologyError(
                f"{other!r}", f"shape {self.shape} and pattern {self.pattern}", "Compare like with like."
            )
        here, there = (Rows(*(array.numpy() for array in side.indices)) for side in (self, other))
        return compare(here, there, self.width)

    def rewired(self, stays: Tensor, grown: Tensor) -> tuple[Topology, Tensor]:
        """The topology of what stays and what comes, and where each of its grains was before.

        stays: bool `(grains,)`. grown: flat grain positions `group * width + column`, int64 `(g,)`, strictly ascending, none of
        them staying. The second result is int32, one for each new grain: its index in this topology, be it that it stays or
        that it went and came back at once; -1 where it was not kept. Memory is proportional to both. Raises TopologyError
        on flags or positions of other kinds, and on a position that also stays.

        >>> here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
        >>> there, source = here.rewired(torch.tensor([False, True, False]), torch.tensor([1, 4]))
        >>> there.positions().tolist(), source.tolist()
        ([1, 2, 4], [-1, 1, 2])
        """
        change = checked_change(self.grains, self.places, stays, grown)
        moved = rewire(Rows(*(array.numpy() for array in self.indices)), self.width, *change)
        pointers, columns, source = (torch.from_numpy(array) for array in moved)
        return self.rewritten(pointers, columns), source

    def rewritten(self, row_pointers: Tensor, columns: Tensor) -> Topology:
        """As `trusted`, of this shape and pattern; PatternError where `N:M` does not keep N of every M any more."""
        check_runs(row_pointers, columns, self.width, self.pattern)
        return Topology.trusted(self.shape, self.pattern, row_pointers, columns)


def _restore(kind: type[Topology], shape: tuple[int, int], pattern: str, *arrays: bytes | Integers) -> Topology:
    # Pickles of earlier versions hold arrays.
    own = (each if isinstance(each, np.ndarray) else np.frombuffer(each, "<i4") for each in arrays)
    return kind.adopt(shape, pattern, *(torch.from_numpy(np.array(each, np.int32)) for each in own))
