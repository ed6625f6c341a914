"""Numbers of a stream by generated kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.kernels.code.emit.stream import PART
from pollard.kernels.code.launch import Launch
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target
from pollard.streams.law import Law


def fill(law: Law, first: int, out: Tensor, target: Target) -> Tensor:
    """Write the rows of the stream from `first` on to `out`, whose rows are contiguous."""
    rows, columns = out.shape
    Launch(
        KernelSpec(law.kind, target.isa), rows, torch.get_num_threads(),
        out=out, PASSES=1, FIRST=first, COLUMNS=columns, LD=out.stride(0), **law.slots(),
    )()  # fmt: skip
    return out


def at(law: Law, rows: Tensor, columns: Tensor, target: Target) -> Tensor:
    """The numbers at these positions, contiguous."""
    out = torch.empty(rows.shape, dtype=torch.float32, device="cpu")
    Launch(
        KernelSpec(f"{law.kind}_at", target.isa), -(-len(rows) // PART), torch.get_num_threads(),
        out=out, rows=rows, columns=columns, PASSES=1, COUNT=len(rows), **law.slots(),
    )()  # fmt: skip
    return out
