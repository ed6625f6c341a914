"""Index work on a whole topology by generated kernels: the borders of its tiles, and the same grains by columns in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pollard.formats.indices import index_dtype
from pollard.formats.topology import Topology
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target

# Columns that are written to side by side, two cache lines each: as many as stay in the first cache. Fewer grains than
# RUN in each row group would cost more for the rows than for the grains.
COLUMNS = 256
RUN = 4


def even(pointers: Tensor, chunks: int, step: int = 1) -> Tensor:
    """Row groups, whose grains begin at `pointers`, cut into runs of about equal numbers of grains: int32 `(chunks + 1,)`.

    step: what the number of row groups in each run but the last is a multiple of.

    >>> even(torch.tensor([0, 2, 4, 6, 8]), 2).tolist()
    [0, 2, 4]
    """
    starts = pointers.numpy()
    cuts = np.searchsorted(starts, equal_runs(int(starts[-1]), chunks).numpy())
    cuts = cuts // step * step
    cuts[0], cuts[-1] = 0, len(starts) - 1
    return torch.from_numpy(cuts.astype(np.int32))


def cut(topology: Topology, width: int, target: Target) -> Tensor:
    """The first grain of each tile of `width` columns in each row group, int32: entry ``[tile * groups + group]``.

    One more tile, at the end, says where the last one ends. Takes a topology with at least one column.
    """
    tiles, threads = -(-topology.width // width), torch.get_num_threads()
    if tiles == 1:
        return torch.cat((topology.indices.row_pointers[:-1], topology.indices.row_pointers[1:]))
    room = int(np.diff(topology.indices.row_pointers.numpy()).max(initial=0)) + target.lanes
    table = torch.empty((tiles + 1) * topology.groups, dtype=torch.int32, device="cpu")
    Launch(
        KernelSpec("cut", target.isa, index=topology.indices.itemsize), threads, threads, pointers=topology.indices.row_pointers, columns=topology.indices.columns, table=table,
        scratch=torch.empty(threads * room, dtype=torch.int32, device="cpu"), bounds=even(topology.indices.row_pointers, threads), PASSES=1,
        TILES=tiles, GROUPS=topology.groups, WIDTH=width, ROOM=room,
    )()  # fmt: skip
    return table


def turn(
    topology: Topology, high: int, borders: Callable[[int], Tensor], target: Target
) -> tuple[Tensor, Tensor, Tensor]:
    """The grains of `topology` by columns, in tiles of `high` row groups: a stable counting sort, a stripe of columns at a time.

    Where each column begins in each tile, int32 ``[tile * in + column]``, and the end; the row group of each grain; where
    it stands in the topology's own order. borders: what `cut` makes for tiles of so many columns.
    """
    width, threads = topology.width, torch.get_num_threads()
    pointers = torch.zeros(-(-topology.groups // high) * width + 1, dtype=torch.int32, device="cpu")
    groups, permutation = (
        torch.empty(topology.grains, dtype=dtype, device="cpu") for dtype in (index_dtype(topology.groups), torch.int32)
    )
    if not topology.grains:
        return pointers, groups, permutation
    wide = -(-width // threads)
    tiles, table = -(-width // wide), borders(wide)
    counts = pointers[1:]
    walk: dict[str, Tensor | int] = {
        "columns": topology.indices.columns, "PASSES": 1, "GROUPS": topology.groups, "IN": width, "HIGH": high
    }  # fmt: skip
    size, index = groups.itemsize, topology.indices.itemsize
    Launch(KernelSpec("count", target.isa, index=index), tiles, threads, **walk, tiles=table, counts=counts)()
    torch.cumsum(counts, 0, dtype=torch.int32, out=counts)
    Launch(
        KernelSpec("turn", target.isa, size=size, index=index), tiles, threads, **walk, pointers=topology.indices.row_pointers, at=table,
        next=pointers[:-1].clone(), groups=groups, permutation=permutation,
        WIDE=wide, STEP=max(COLUMNS, math.ceil(RUN / topology.density)),
    )()  # fmt: skip
    return pointers, groups, permutation
