"""A topology that moves, fast: its new rows, the values that move with them, and samples of what may come."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from pollard.formats.indices import checked_positions
from pollard.formats.rewiring import Positions, checked_change
from pollard.formats.sampling import sample_absent, sample_ranks
from pollard.formats.topology import Topology
from pollard.kernels.fallback import attempt
from pollard.kernels.launch import Launch
from pollard.kernels.moving import gather
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import Target
from pollard.kernels.turning import even


def rewire(topology: Topology, kept: Tensor, grown: Tensor) -> tuple[Topology, Tensor]:
    """As `Topology.rewired`, to the bit.

    >>> here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
    >>> there, source = rewire(here, torch.tensor([1, 2]), torch.tensor([0, 5]))
    >>> there.positions().tolist(), source.tolist()
    ([0, 2, 4, 5], [-1, 1, 2, -1])
    """
    if not len(kept):
        return topology.rewired(kept, grown)
    change = checked_change(topology.grains, topology.groups * topology.shape[1], kept, grown)
    made = attempt(partial(_merged, topology, *change))
    return topology.rewired(kept, grown) if made is None else made


def sample_grown(
    topology: Topology, count: int, generator: torch.Generator | None = None, *, kept: Tensor | None = None
) -> Tensor:
    """`count` positions for grains to grow at, ascending int64 `(count,)`, drawn uniformly from those not taken.

    Taken are the grains of `topology` at the indices `kept`, int64 `(k,)`, strictly ascending; all of them by default.
    As `sample_absent` of their positions, to the bit, with any number of threads. Raises TopologyError on `kept` out of
    order or range, InvalidInput where fewer positions are free.

    >>> here = Topology.from_positions((2, 2), "unstructured", torch.tensor([0, 3]))
    >>> sample_grown(here, 2).tolist(), sample_grown(here, 3, kept=torch.tensor([1])).tolist()
    ([1, 2], [0, 1, 2])
    """
    total = topology.groups * topology.shape[1]
    if kept is not None:
        kept = checked_positions(kept, topology.grains, name="kept").long()
    # The state is put back before the twin draws again: the result must not tell which of them ran.
    generator = torch.default_generator if generator is None else generator
    state = generator.get_state()
    made = attempt(partial(_positions, topology, count, generator, kept))
    if made is None:
        generator.set_state(state)
        present = topology.positions()
        taken = present if kept is None else present[kept]
        made = torch.from_numpy(sample_absent(total, taken.numpy(), count, generator))
    return made


def _merged(topology: Topology, kept: Positions, grown: Positions, target: Target) -> tuple[Topology, Tensor] | None:
    # None where a grain both stays and comes: the twin says which.
    threads, width = torch.get_num_threads(), topology.shape[1]
    stays = torch.from_numpy(np.searchsorted(kept, topology.row_pointers.numpy()).astype(np.int32))
    comes = _row_starts(grown, topology.groups, width)
    pointers = stays + comes
    columns, source = (torch.empty(len(kept) + len(grown), dtype=torch.int32) for _ in range(2))
    clash, room = torch.zeros(1, dtype=torch.int32), 2 * (int(stays.diff().max()) + target.lanes)
    Launch(
        KernelSpec("rewire", target.isa), threads, threads, kept=torch.from_numpy(kept), grown=torch.from_numpy(grown),
        columns=topology.columns, stays=stays, comes=comes, fresh=columns, source=source, clash=clash,
        scratch=torch.empty(threads * room, dtype=torch.int32), bounds=even(pointers, threads),
        PASSES=1, WIDTH=width, ROOM=room,
    )()  # fmt: skip
    return None if clash.item() else (Topology.trusted(topology.shape, topology.pattern, pointers, columns), source)


def _positions(
    topology: Topology, count: int, generator: torch.Generator, kept: Tensor | None, target: Target
) -> Tensor:
    threads, width, pointers = torch.get_num_threads(), topology.shape[1], topology.row_pointers.numpy()
    taken = topology.grains if kept is None else len(kept)
    ranks = sample_ranks(topology.groups * width - taken, count, generator)
    stays = pointers if kept is None else np.searchsorted(kept.numpy(), pointers).astype(np.int32)
    free = np.arange(topology.groups + 1, dtype=np.int64) * width - stays
    comes = torch.from_numpy(np.searchsorted(ranks, free).astype(np.int32))
    positions, room = torch.empty(count, dtype=torch.int64), int(np.diff(stays).max(initial=0)) + target.lanes
    Launch(
        KernelSpec("absent", target.isa, permuted=kept is not None), threads, threads, kept=0 if kept is None else kept,
        ranks=torch.from_numpy(ranks), columns=topology.columns, stays=torch.from_numpy(stays), comes=comes,
        positions=positions, scratch=torch.empty(threads * room, dtype=torch.int32), bounds=even(comes, threads),
        PASSES=1, WIDTH=width, ROOM=room,
    )()  # fmt: skip
    return positions


def _row_starts(positions: Positions, groups: int, width: int) -> Tensor:
    starts = np.searchsorted(positions, np.arange(groups + 1, dtype=np.int64) * width)
    return torch.from_numpy(starts.astype(np.int32))


__all__ = ["gather", "rewire", "sample_grown"]
