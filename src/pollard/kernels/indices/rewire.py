"""A topology that moves, fast: its new rows, the values that move with them, and samples of what may come."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from pollard.formats.indices import check_count
from pollard.formats.rewiring import Flags, Positions, checked_change, checked_flags
from pollard.formats.sampling import sample_absent, sample_ranks
from pollard.formats.topology import Topology
from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.launch import Launch
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target
from pollard.kernels.indices.moving import move_values
from pollard.kernels.indices.settling import distinct
from pollard.kernels.indices.turning import even


def rewire(topology: Topology, stays: Tensor, grown: Tensor, *, anew: bool = False) -> tuple[Topology, Tensor]:
    """As `Topology.rewired`, to the bit.

    anew: nothing of `grown` is in `topology`, as the caller knows; what was, and does not stay, would come as if it were new.

    >>> here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
    >>> there, source = rewire(here, torch.tensor([False, True, False]), torch.tensor([1, 4]))
    >>> there.positions().tolist(), source.tolist()
    ([1, 2, 4], [-1, 1, 2])
    """
    change = checked_change(topology.grains, topology.places, stays, grown)
    made = attempt(partial(_merged, topology, *change, anew=anew)) if topology.grains else None
    return topology.rewired(stays, grown) if made is None else made


def sample_grown(
    topology: Topology, count: int, generator: torch.Generator | None = None, *, stays: Tensor | None = None
) -> Tensor:
    """`count` positions for grains to grow at, ascending int64 `(count,)`, drawn uniformly from those not taken.

    Taken are the grains of `topology` that bool `stays` `(grains,)` names; all of them by default. As `sample_absent` of
    their positions, to the bit, with any number of threads. Raises TopologyError on `stays` of another kind, InvalidInput
    where fewer positions are free.

    >>> here = Topology.from_positions((2, 2), "unstructured", torch.tensor([0, 3]))
    >>> sample_grown(here, 2).tolist(), sample_grown(here, 3, stays=torch.tensor([False, True])).tolist()
    ([1, 2], [0, 1, 2])
    """
    total = topology.places
    flags = None if stays is None else checked_flags(stays, topology.grains)
    # The state is put back before the twin draws again: the result must not tell which of them ran.
    generator = torch.default_generator if generator is None else generator
    state = generator.get_state()
    made = attempt(partial(_positions, topology, count, generator, flags))
    if made is None:
        generator.set_state(state)
        made = torch.from_numpy(sample_absent(total, topology.positions(stays).numpy(), count, generator))
    return made


def positions_of(topology: Topology, only: Tensor) -> Tensor:
    """As `Topology.positions` of the grains in bool `only` `(grains,)`, to the bit. Raises TopologyError on flags of another kind.

    >>> positions_of(Topology.full((4, 2), "v2"), torch.tensor([True, False, False, True])).tolist()
    [0, 3]
    """
    flags = checked_flags(only, topology.grains)
    made = attempt(partial(_placed, topology, flags))
    return topology.positions(only) if made is None else made


def _placed(topology: Topology, flags: Flags, target: Target) -> Tensor:
    threads, room = torch.get_num_threads(), _longest(topology) + target.lanes
    starts = torch.from_numpy(_tally(topology, flags, target)).int()
    positions = torch.empty(int(starts[-1]), dtype=torch.int64, device="cpu")
    Launch(
        KernelSpec("place", target.isa, index=topology.indices.itemsize), threads, threads,
        flags=torch.from_numpy(flags), columns=topology.indices.columns, pointers=topology.indices.row_pointers, starts=starts, positions=positions,
        scratch=torch.empty(threads * room, dtype=torch.int32, device="cpu"), bounds=even(topology.indices.row_pointers, threads), PASSES=1,
        WIDTH=topology.width, ROOM=room,
    )()  # fmt: skip
    return positions


def _longest(topology: Topology) -> int:
    return int(np.diff(topology.indices.row_pointers.numpy()).max(initial=0))


def _merged(
    topology: Topology, stays: Flags, grown: Positions, target: Target, *, anew: bool
) -> tuple[Topology, Tensor] | None:
    # None where a grain both stays and comes: the twin says which.
    threads, width, groups = torch.get_num_threads(), topology.width, topology.groups
    old, comes = topology.indices.row_pointers, _row_starts(grown, groups, width)
    longest, pointers = int(old.diff().max()), torch.zeros(groups + 1, dtype=torch.int32, device="cpu")
    flags = torch.from_numpy(stays if anew else np.append(stays, False))
    walk: dict[str, Tensor | int] = {
        "grown": torch.from_numpy(grown), "columns": topology.indices.columns, "pointers": old, "comes": comes, "flags": flags,
        "bounds": even(old.long() + comes, threads), "PASSES": 1, "WIDTH": width,
    }  # fmt: skip
    if anew:
        torch.add(_tallied(topology, flags, target), comes.diff(), out=pointers[1:])
    elif not _mark(topology, walk, pointers[1:], target):
        return None
    room = 4 * (max(longest, int(pointers.max())) + 1 + target.lanes)
    total = int(pointers.sum())
    check_count(total)
    torch.cumsum(pointers, 0, dtype=torch.int32, out=pointers)
    columns = torch.empty(total, dtype=topology.indices.columns.dtype, device="cpu")
    source, met = (torch.empty(size, dtype=torch.int32, device="cpu") for size in (total, threads))
    Launch(
        KernelSpec("rewire", target.isa, index=columns.itemsize), threads, threads, **walk, starts=pointers, fresh=columns, source=source, met=met,
        scratch=torch.empty(threads * room, dtype=torch.int32, device="cpu"), ROOM=room,
    )()  # fmt: skip
    if anew and bool(met.any()):
        return None
    return topology.rewritten(pointers, columns), source


def _mark(topology: Topology, walk: dict[str, Tensor | int], counts: Tensor, target: Target) -> bool:
    """Flag the grains that come back, and count those of the new rows; whether none both stays and comes."""
    threads, clash = torch.get_num_threads(), torch.zeros(1, dtype=torch.int32, device="cpu")
    room = _longest(topology) + 1 + target.lanes
    Launch(
        KernelSpec("mark", target.isa, index=topology.indices.itemsize), threads, threads, **walk, counts=counts, clash=clash,
        scratch=torch.empty(threads * room, dtype=torch.int32, device="cpu"), GRAINS=topology.grains, ROOM=room,
    )()  # fmt: skip
    return not clash.item()


def _positions(
    topology: Topology, count: int, generator: torch.Generator, stays: Flags | None, target: Target
) -> Tensor:
    threads, width, pointers = torch.get_num_threads(), topology.width, topology.indices.row_pointers
    taken = pointers.numpy() if stays is None else _tally(topology, stays, target)
    free = np.arange(topology.groups + 1, dtype=np.int64) * width - taken
    ranks = sample_ranks(int(free[-1]), count, generator, distinct)
    comes = torch.from_numpy(np.searchsorted(ranks, free).astype(np.int32))
    positions, room = torch.empty(count, dtype=torch.int64, device="cpu"), _longest(topology) + 1 + target.lanes
    Launch(
        KernelSpec("absent", target.isa, permuted=stays is not None, index=topology.indices.itemsize), threads, threads,
        flags=0 if stays is None else torch.from_numpy(stays), ranks=torch.from_numpy(ranks), free=torch.from_numpy(free),
        columns=topology.indices.columns, pointers=pointers, comes=comes, positions=positions,
        scratch=torch.empty(threads * room, dtype=torch.int32, device="cpu"), bounds=even(comes, threads),
        PASSES=1, WIDTH=width, ROOM=room,
    )()  # fmt: skip
    return positions


def _tallied(topology: Topology, flags: Tensor, target: Target) -> Tensor:
    """How many grains of each row group are flagged, int32."""
    threads, counts = torch.get_num_threads(), torch.empty(topology.groups, dtype=torch.int32, device="cpu")
    Launch(
        KernelSpec("tally", target.isa), threads, threads, flags=flags, pointers=topology.indices.row_pointers, counts=counts,
        bounds=even(topology.indices.row_pointers, threads), PASSES=1,
    )()  # fmt: skip
    return counts


def _tally(topology: Topology, stays: Flags, target: Target) -> Positions:
    """How many grains stay in the row groups before each, and in all."""
    starts: Positions = np.append(0, _tallied(topology, torch.from_numpy(stays), target).numpy().cumsum(dtype=np.int64))
    return starts


def _row_starts(positions: Positions, groups: int, width: int) -> Tensor:
    starts = np.searchsorted(positions, np.arange(groups + 1, dtype=np.int64) * width)
    return torch.from_numpy(starts.astype(np.int32))


__all__ = ["move_values", "positions_of", "rewire", "sample_grown"]
