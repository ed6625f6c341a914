"""Candidates for growth, drawn where rows and columns are likely, in time and memory of what is drawn."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.formats.indices import check_count
from pollard.formats.topology import Topology
from pollard.kernels.code.emit.draw import BITS, LANES, TURNS, WORD
from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.launch import Launch
from pollard.kernels.code.philox import key, words
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target
from pollard.kernels.indices.turning import even

# Of a row's share that count: roundings beyond them, which differ from one storage to another, change no draw.
SHARE_BITS = 40


def candidates(
    topology: Topology, count: int, groups: Tensor, columns: Tensor, generator: torch.Generator | None = None
) -> Topology:
    """The grains that `count` draws with replacement hit and that `topology` does not keep, each once.

    A draw takes row group i and column j with probability in proportion to `groups[i] * columns[j]`, which are at least 0,
    `(row groups,)` and `(in,)`; all alike where all of either are 0. The same state of the generator gives the same
    candidates, with any number of threads; weights that differ by a rounding hardly ever give other ones.
    Raises InvalidInput where weights do not fit or are not finite, TopologyError where int32 cannot count the draws.

    >>> here = Topology.from_positions((2, 2), "unstructured", torch.tensor([0]))
    >>> candidates(here, 99, torch.tensor([1.0, 0.0]), torch.ones(2)).positions().tolist()
    [1]
    """
    check_count(count)
    if groups.shape != (topology.groups,) or columns.shape != (topology.width,):
        raise InvalidInput(
            f"weights of {tuple(groups.shape)} row groups and {tuple(columns.shape)} columns",
            f"({topology.groups},) and ({topology.width},)",
            "Give one weight for each row group and each column.",
        )
    seeds = torch.randint(
        torch.iinfo(torch.int64).max, (2,), generator=generator, dtype=torch.int64, device="cpu"
    ).tolist()
    if not count or not len(groups) or not len(columns):
        return Topology.from_positions(
            topology.shape, topology.pattern, torch.empty(0, dtype=torch.int64, device="cpu")
        )
    dealt, across = _dealt(_checked(groups), count, seeds[0]), _Distribution.of(_checked(columns), seeds[1])
    made = attempt(partial(_drawn, topology, dealt, across))
    return drawn_slowly(topology, dealt, across) if made is None else made


def _checked(weights: Tensor) -> Tensor:
    """As doubles; all alike where all are 0."""
    weights = weights.double()
    total = float(weights.sum())
    if not math.isfinite(total):
        raise InvalidInput("weights that are not finite", "finite weights to draw by", "Look for NaN in the passes.")
    return weights if total > 0.0 else torch.ones_like(weights)


def _dealt(weights: Tensor, count: int, seed: int) -> Tensor:
    """How many of `count` draws fall to each row group, int64: a multinomial draw, a binomial one each."""
    # What rounding leaves over goes to the last outcome: to none that has no weight.
    likely, dealt = weights.nonzero().view(-1), torch.zeros(len(weights), dtype=torch.int64, device="cpu")
    # Gradients of a softmax add up to zero, so that one row often has just half of all: where numpy goes one way or another.
    fractions, exponents = np.frexp((weights[likely] / weights.sum()).numpy())
    shares = np.ldexp(np.round(fractions * 2.0**SHARE_BITS), exponents - SHARE_BITS)
    dealt[likely] = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).multinomial(count, shares))
    return dealt


class _Distribution(NamedTuple):
    """Outcomes by random number: outcome i has those from ``ends[i - 1]`` to below ``ends[i]``, out of ``2**BITS``."""

    ends: Tensor
    seed: int

    @classmethod
    def of(cls, weights: Tensor, seed: int) -> _Distribution:
        total = weights.cumsum(0)
        return cls((total / total[-1] * 2.0**BITS).long(), seed)

    def numbers(self, groups: Tensor, turns: Tensor) -> Tensor:
        """The random numbers of these turns of row groups, of BITS bits."""
        pair, lane = turns % TURNS // LANES, turns % LANES
        made = words([turns // TURNS * LANES + lane, groups, 0, 0], key(self.seed))
        numbers = [
            (high << BITS - WORD // 2) | (low >> WORD - BITS) for high, low in zip(made[::2], made[1::2], strict=True)
        ]
        return torch.stack(numbers).gather(0, pair[None])[0]

    def outcomes(self, groups: Tensor, turns: Tensor) -> Tensor:
        """Their outcomes."""
        return torch.searchsorted(self.ends, self.numbers(groups, turns), right=True)

    def guide(self) -> tuple[Tensor, int]:
        """The outcome of the first number with each beginning, for about twice as many beginnings as outcomes; other bits."""
        first = min(BITS, len(self.ends).bit_length() + 1)
        shift = BITS - first
        # As many ends are no more than a beginning as are no more once rounded up to one.
        passed = (-(-self.ends >> shift)).bincount(minlength=1 << first)
        return passed.cumsum(0)[: 1 << first].int(), shift


def drawn_slowly(topology: Topology, dealt: Tensor, across: _Distribution) -> Topology:
    """`candidates`, with all draws side by side, so many `dealt` to each row group: their specification."""
    groups = torch.arange(topology.groups, dtype=torch.int64, device="cpu").repeat_interleave(dealt)
    turns = torch.arange(len(groups), dtype=torch.int64, device="cpu") - (dealt.cumsum(0) - dealt).repeat_interleave(
        dealt
    )
    drawn = torch.unique(groups * topology.width + across.outcomes(groups, turns))
    free = drawn[~torch.isin(drawn, topology.positions(), assume_unique=True)]
    return Topology.from_positions(topology.shape, topology.pattern, free)


def _drawn(topology: Topology, dealt: Tensor, across: _Distribution, target: Target) -> Topology:
    threads, groups, width = torch.get_num_threads(), topology.groups, topology.width
    starts, pointers = (torch.zeros(groups + 1, dtype=torch.int32, device="cpu") for _ in range(2))
    torch.cumsum(dealt, 0, dtype=torch.int32, out=starts[1:])
    guide, shift = across.guide()
    words = -(-width // WORD**2) * WORD
    room = words + words // WORD + (words * WORD + target.lanes) // 2
    bounds, columns = even(starts, threads), torch.empty(int(starts[-1]), dtype=torch.int32, device="cpu")
    Launch(
        KernelSpec("draw", target.isa, index=topology.indices.itemsize), threads, threads, ends=across.ends,
        guide=guide, columns=topology.indices.columns, pointers=topology.indices.row_pointers, starts=starts, fresh=columns, counts=pointers[1:],
        scratch=torch.zeros(threads * room, dtype=torch.int64, device="cpu"), bounds=bounds, PASSES=1, SEED=across.seed, SHIFT=shift,
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
