"""A topology that moves, fast: its new rows, and the values that move with them."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.formats.topology import Topology


def rewire(topology: Topology, kept: Tensor, grown: Tensor) -> tuple[Topology, Tensor]:
    """As `Topology.rewired`, to the bit.

    >>> here = Topology.from_positions((2, 3), "unstructured", torch.tensor([0, 2, 4]))
    >>> there, source = rewire(here, torch.tensor([1, 2]), torch.tensor([0, 5]))
    >>> there.positions().tolist(), source.tolist()
    ([0, 2, 4, 5], [-1, 1, 2, -1])
    """
    return topology.rewired(kept, grown)


def gather(old: Tensor, source: Tensor, fill: float | Tensor, *, rows: int = 1, out: Tensor | None = None) -> Tensor:
    """Values of a rewired topology: those of `old` at `source`, `fill` where a grain was grown.

    old: `(grains * rows,)` of any float dtype. source: int32 `(new grains,)`, as `rewire` returns it. fill: a number, or
    a value for each grown weight in order, `(grown * rows,)`. out: `(new grains * rows,)`, written to and returned.

    >>> gather(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([-1, 1], dtype=torch.int32), 0.0, rows=2)
    tensor([0., 0., 3., 4.])
    """
    new = old.new_empty(len(source) * rows) if out is None else out
    grown = source < 0
    if len(old):
        torch.index_select(old.view(-1, rows), 0, source.clamp(min=0), out=new.view(-1, rows))
    if isinstance(fill, Tensor):
        new.view(-1, rows)[grown] = fill.view(-1, rows)
    else:
        new.view(-1, rows).masked_fill_(grown.unsqueeze(1), fill)
    return new
