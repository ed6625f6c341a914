"""Sparse matrices that are exactly orthogonal, where they stand and what they are drawn together: no dense weight exists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pollard.errors import InvalidInput, PatternError
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.sampling import sample_absent
from pollard.formats.topology import Topology
from pollard.pruning.plan import Plan

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Rotations that are drawn at a time.
BLOCK = 256
EMPTY: tuple[Ints, Floats] = np.empty(0, dtype=np.int64), np.empty(0)


def exact_orthogonal(plan: Plan, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Plan:
    """`plan` with other topologies and values, as many weights in each layer: a `sparse_orthogonal` matrix for each.

    What the plan keeps counts, not where: a `random` plan and its allocation are all that is asked of it. Raises PatternError
    for grains of several weights.

    >>> from pollard.pruning import prune
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    >>> exact_orthogonal(prune(model, "random", 0.5, allocation="erk"))
    Plan(2 layers, 48 of 96 weights kept, density 0.5)
    """
    for name, topology in plan.items():
        if str(topology.pattern) != "unstructured":
            raise PatternError(
                f"layer {name!r} of pattern {topology.pattern}, to be orthogonal",
                "unstructured layers: a rotation places single weights",
                "Make the plan without pattern=.",
            )
    made = {
        name: sparse_orthogonal(topology.shape, topology.nnz, gain=gain, generator=generator)
        for name, topology in plan.items()
    }
    topologies = {name: matrix.topology for name, matrix in made.items()}
    return replace(plan, topologies=topologies, updated={name: matrix.values for name, matrix in made.items()})


def sparse_orthogonal(
    shape: tuple[int, int], count: int, *, gain: float = 1.0, generator: torch.Generator | None = None
) -> SparseMatrix:
    """A matrix `(out, in)` of `count` kept weights with `W W^T = gain^2 I`, or `W^T W` where it has more rows than columns.

    The identity, rotated by a random angle in the plane of two random columns, again and again: two columns stand together
    where either did. Before a rotation that would keep more than `count`, it ends, and zeros at random places make up the
    number. Of less than the shorter side it is a part of the identity. Time and memory are those of what is kept.
    Raises InvalidInput for a count that there is no room for.
    Source: Nowak, Gniecki, Szatkowski, Tabor, Sparser, better, deeper, stronger: improving static sparse training with exact
    orthogonal initialization, ICML 2024, and the authors' code.

    >>> weight = sparse_orthogonal((4, 6), 12, generator=torch.Generator().manual_seed(0)).to_dense()
    >>> torch.allclose(weight @ weight.T, torch.eye(4), atol=1e-6)
    True
    """
    out, inputs = shape
    if not 0 <= count <= out * inputs:
        raise InvalidInput(
            f"a count of {count} for a weight {shape}", f"a count in [0, {out * inputs}]", "Keep no more than there is."
        )
    generator = generator or torch.default_generator
    short, long = min(shape), max(shape)
    columns = _Columns(min(short, count))
    for first, second, angle in _planes(long, generator):
        if columns.kept >= count or not columns.rotated(first, second, angle, count - columns.kept):
            break
    rows, places, values = columns.entries()
    # Of a weight with more rows than columns it is the transpose that was made.
    positions = rows * inputs + places if out <= inputs else places * inputs + rows
    return _padded(shape, count, positions, gain * values, generator)


class _Columns:
    """A sparse matrix by those of its columns that hold anything: where, ascending, and what."""

    def __init__(self, ones: int) -> None:
        self.kept = ones
        self.held: dict[int, tuple[Ints, Floats]] = {
            j: (np.array([j], dtype=np.int64), np.ones(1)) for j in range(ones)
        }

    def rotated(self, first: int, second: int, angle: float, room: int) -> bool:
        """Rotates two columns, unless more than `room` entries would come; whether it did."""
        one, other = self.held.get(first, EMPTY), self.held.get(second, EMPTY)
        rows = np.union1d(one[0], other[0])
        came = 2 * len(rows) - len(one[0]) - len(other[0])
        if came > room:
            return False
        if len(rows):
            left, right = _spread(*one, rows), _spread(*other, rows)
            cosine, sine = math.cos(angle), math.sin(angle)
            self.held[first] = rows, cosine * left + sine * right
            self.held[second] = rows, cosine * right - sine * left
        self.kept += came
        return True

    def entries(self) -> tuple[Ints, Ints, Floats]:
        """Rows, columns and values of all entries."""
        rows, values = ([column[part] for column in self.held.values()] for part in (0, 1))
        places = np.repeat(np.array(list(self.held), dtype=np.int64), [len(each) for each in rows])
        return np.concatenate([EMPTY[0], *rows]), places, np.concatenate([EMPTY[1], *values])


def _spread(held: Ints, values: Floats, rows: Ints) -> Floats:
    """`values` of the rows that are `held`, zero for the others of `rows`."""
    found = np.zeros(len(rows))
    found[np.searchsorted(rows, held)] = values
    return found


def _planes(columns: int, generator: torch.Generator) -> Iterator[tuple[int, int, float]]:
    """Pairs of different columns, and angles, without end; none where there is one column."""
    while columns > 1:
        first = torch.randint(columns, (BLOCK,), generator=generator, dtype=torch.int64, device="cpu")
        apart = torch.randint(1, columns, (BLOCK,), generator=generator, dtype=torch.int64, device="cpu")
        angles = torch.rand(BLOCK, generator=generator, dtype=torch.float64, device="cpu") * (2 * math.pi)
        yield from zip(first.tolist(), ((first + apart) % columns).tolist(), angles.tolist(), strict=True)


def _padded(
    shape: tuple[int, int], count: int, positions: Ints, values: Floats, generator: torch.Generator
) -> SparseMatrix:
    """The matrix, with zeros at random places besides, so that `count` are kept."""
    order = np.argsort(positions)
    zeros = sample_absent(shape[0] * shape[1], positions[order], count - len(positions), generator)
    everywhere = np.concatenate((positions[order], zeros))
    filled = np.concatenate((values[order], np.zeros(len(zeros))))
    ascending = np.argsort(everywhere)
    topology = Topology.from_positions(shape, Pattern(), torch.from_numpy(everywhere[ascending]))
    return SparseMatrix(torch.from_numpy(filled[ascending]).float(), topology)
