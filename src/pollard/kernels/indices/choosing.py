"""Which grains of a block of scores may still be among the best."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from pollard.formats.rewiring import Flags, checked_flags
from pollard.formats.topology import Topology
from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target


def choose(topology: Topology, stays: Tensor, first: int, scores: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """The positions, ascending int64, and the scores of all that does not stay and scores above `bound`, in some rows.

    scores: `(row groups, in)`, from row group `first` of `topology` on; spoiled. stays: bool `(grains,)`.
    Raises TopologyError on `stays` of another kind.

    >>> here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
    >>> stays, scores = torch.tensor([True, True, False]), torch.tensor([[2.0, 4.0, 6.0]])
    >>> choose(here, stays, 0, scores, 1.0), choose(here, stays, 1, torch.tensor([[2.0, 4.0, 6.0]]), 3.0)
    ((tensor([1]), tensor([4.])), (tensor([4, 5]), tensor([4., 6.])))
    """
    flags = checked_flags(stays, topology.grains)
    made = None
    if scores.dtype == torch.float32 and scores.is_contiguous() and 0 < scores.numel() < 1 << 31:
        made = attempt(partial(_chosen, topology, flags, (first, scores), bound))
    return choose_slowly(topology, flags, first, scores, bound) if made is None else made


def choose_slowly(topology: Topology, stays: Flags, first: int, scores: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """`choose`, by masks: its specification."""
    width, pointers = topology.width, topology.indices.row_pointers[first : first + len(scores) + 1].numpy()
    held = slice(int(pointers[0]), int(pointers[-1]))
    rows = np.repeat(np.arange(len(scores)), np.diff(pointers))
    above = scores.numpy() > bound
    above[rows[stays[held]], topology.indices.columns[held].numpy()[stays[held]]] = False
    found = torch.from_numpy(np.flatnonzero(above))
    return found + first * width, scores.reshape(-1)[found]


def _chosen(
    topology: Topology, stays: Flags, block: tuple[int, Tensor], bound: float, target: Target
) -> tuple[Tensor, Tensor]:
    first, scores = block
    (groups, width), threads = scores.shape, torch.get_num_threads()
    bounds = equal_runs(groups, threads)
    found, best = (
        torch.empty(scores.numel(), dtype=torch.int32, device="cpu"),
        torch.empty(scores.numel(), dtype=torch.float32, device="cpu"),
    )
    counts = torch.zeros(threads, dtype=torch.int32, device="cpu")
    Launch(
        KernelSpec("choose", target.isa, index=topology.indices.itemsize), threads, threads, scores=scores, bound=torch.tensor([bound], dtype=torch.float32, device="cpu"),
        flags=torch.from_numpy(stays), columns=topology.indices.columns, pointers=topology.indices.row_pointers, found=found, best=best,
        counts=counts, spare=torch.empty(threads, dtype=torch.float32, device="cpu"), bounds=bounds, PASSES=1, WIDTH=width,
        FIRST=first,
    )()  # fmt: skip
    parts = [
        slice(start * width, start * width + n) for start, n in zip(bounds.tolist(), counts.tolist(), strict=False)
    ]
    places = torch.cat([found[part] for part in parts]).long()
    return places.add_(first * width), torch.cat([best[part] for part in parts])
