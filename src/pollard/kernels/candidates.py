"""Candidates for growth, drawn where rows and columns are likely, in time and memory of what is drawn."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.formats.indices import check_count
from pollard.formats.topology import Topology
from pollard.kernels.emit.draw import BITS, MIXING, STEP, WORD
from pollard.kernels.fallback import attempt
from pollard.kernels.launch import Launch
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import Target
from pollard.kernels.turning import even

Numbers = NDArray[np.uint64]


def candidates(
    topology: Topology, count: int, groups: Tensor, columns: Tensor, generator: torch.Generator | None = None
) -> Topology:
    """The grains that `count` draws with replacement hit and that `topology` does not keep, each once.

    A draw takes row group i and column j with probability in proportion to `groups[i] * columns[j]`, which are at least 0,
    `(row groups,)` and `(in,)`; all alike where all of either are 0. The same state of the generator gives the same
    candidates, with any number of threads; weights that differ by a rounding give other ones only where a draw falls between.
    Raises InvalidInput where weights do not fit or are not finite, TopologyError where int32 cannot count the draws.

    >>> here = Topology.from_positions((2, 2), "unstructured", torch.tensor([0]))
    >>> candidates(here, 99, torch.tensor([1.0, 0.0]), torch.ones(2)).positions().tolist()
    [1]
    """
    check_count(count)
    if groups.shape != (topology.groups,) or columns.shape != (topology.shape[1],):
        raise InvalidInput(
            f"weights of {tuple(groups.shape)} row groups and {tuple(columns.shape)} columns",
            f"({topology.groups},) and ({topology.shape[1]},)",
            "Give one weight for each row group and each column.",
        )
    keys = torch.randint(torch.iinfo(torch.int64).max, (2,), generator=generator).tolist()
    if not count or not len(groups) or not len(columns):
        return Topology.from_positions(topology.shape, topology.pattern, torch.empty(0, dtype=torch.int64))
    rows, across = (_Distribution.of(weights, key) for weights, key in zip((groups, columns), keys, strict=True))
    made = attempt(partial(_drawn, topology, count, rows, across))
    return drawn_slowly(topology, count, rows, across) if made is None else made


class _Distribution(NamedTuple):
    """Outcomes by random number: outcome i has those from ``ends[i - 1]`` to below ``ends[i]``, out of ``2**BITS``."""

    ends: Tensor
    key: int

    @classmethod
    def of(cls, weights: Tensor, key: int) -> _Distribution:
        total = weights.double().cumsum(0)
        if not bool(total[-1].isfinite()):
            raise InvalidInput(
                "weights that are not finite", "finite weights to draw by", "Look for NaN in the passes."
            )
        if not float(total[-1]) > 0.0:
            total = torch.ones(len(weights), dtype=torch.float64).cumsum(0)
        return cls((total / total[-1] * 2.0**BITS).long(), key)

    def numbers(self, counters: Numbers) -> Tensor:
        """The random numbers of these counters, of BITS bits."""
        numbers = np.uint64(self.key) + (counters + np.uint64(1)) * np.uint64(STEP)
        for shift, factor in MIXING:
            numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
        return torch.from_numpy((numbers >> np.uint64(WORD - BITS)).astype(np.int64))

    def outcomes(self, counters: Numbers) -> Tensor:
        """Their outcomes."""
        return torch.searchsorted(self.ends, self.numbers(counters), right=True)

    def guide(self) -> tuple[Tensor, int]:
        """The outcome of the first number with each beginning, for about twice as many beginnings as outcomes; other bits."""
        first = min(BITS, len(self.ends).bit_length() + 1)
        shift = BITS - first
        # As many ends are no more than a beginning as are no more once rounded up to one.
        passed = (-(-self.ends >> shift)).bincount(minlength=1 << first)
        return passed.cumsum(0)[: 1 << first].int(), shift


def drawn_slowly(topology: Topology, count: int, rows: _Distribution, across: _Distribution) -> Topology:
    """`candidates`, with all draws side by side: their specification."""
    dealt = rows.outcomes(np.arange(count, dtype=np.uint64)).bincount(minlength=topology.groups)
    groups = torch.arange(topology.groups).repeat_interleave(dealt)
    turns = torch.arange(count) - (dealt.cumsum(0) - dealt).repeat_interleave(dealt)
    columns = across.outcomes(((groups << 32) + turns).numpy().astype(np.uint64))
    drawn = torch.unique(groups * topology.shape[1] + columns)
    free = drawn[~torch.isin(drawn, topology.positions(), assume_unique=True)]
    return Topology.from_positions(topology.shape, topology.pattern, free)


def _drawn(topology: Topology, count: int, rows: _Distribution, across: _Distribution, target: Target) -> Topology:
    threads, groups, width = torch.get_num_threads(), topology.groups, topology.shape[1]
    guide, shift = rows.guide()
    dealt = torch.zeros(threads, groups, dtype=torch.int32)
    shares = torch.tensor([count * part // threads for part in range(threads + 1)], dtype=torch.int32)
    Launch(
        KernelSpec("deal", target.isa), threads, threads, ends=rows.ends, guide=guide, counts=dealt, bounds=shares,
        PASSES=1, KEY=rows.key, SHIFT=shift, GROUPS=groups,
    )()  # fmt: skip
    starts, pointers = (torch.zeros(groups + 1, dtype=torch.int32) for _ in range(2))
    torch.cumsum(dealt.sum(0), 0, dtype=torch.int32, out=starts[1:])
    guide, shift = across.guide()
    words = -(-width // WORD**2) * WORD
    room = words + words // WORD + (words * WORD + target.lanes) // 2
    bounds, columns = even(starts, threads), torch.empty(count, dtype=torch.int32)
    Launch(
        KernelSpec("draw", target.isa), threads, threads, ends=across.ends, guide=guide, columns=topology.columns,
        pointers=topology.row_pointers, starts=starts, fresh=columns, counts=pointers[1:],
        scratch=torch.zeros(threads * room, dtype=torch.int64), bounds=bounds, PASSES=1, KEY=across.key, SHIFT=shift,
        WORDS=words, ROOM=room,
    )()  # fmt: skip
    torch.cumsum(pointers, 0, dtype=torch.int32, out=pointers)
    # Each thread filled the beginning of its part: they are pushed together.
    found = columns.numpy()
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        here, there, end = int(starts[first]), int(pointers[first]), int(pointers[last])
        if here != there:
            found[there:end] = found[here : here + end - there]
    return Topology.trusted(topology.shape, topology.pattern, pointers, columns[: int(pointers[-1])])
