"""Values that move with their grains from one topology to another."""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target


def move_values(
    old: Tensor, source: Tensor, fill: float | Tensor, *, size: int = 1, out: Tensor | None = None
) -> Tensor:
    """Values of a rewired topology: those of `old` at `source`, `fill` where a grain was grown.

    old: `(grains * size,)` of any float dtype, on any device. source: int32 `(new grains,)`, as `rewire` returns it. fill: a number, or
    a value for each grown weight in order, `(grown * size,)`. out: `(new grains * size,)`, other memory than `old`,
    written to and returned. No gradient flows. Raises InvalidInput where these do not fit together.

    >>> move_values(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([-1, 1], dtype=torch.int32), 0.0, size=2)
    tensor([0., 0., 3., 4.])
    """
    old, source = old.detach().contiguous(), source.contiguous()
    new = old.new_empty(len(source) * size) if out is None else out
    _check(old, source, new, size)
    chunks = torch.get_num_threads()
    bounds = equal_runs(len(source), chunks)
    starts = [0] * (chunks + 1)
    if isinstance(fill, Tensor):
        grown = [int(np.count_nonzero(source[first:last].numpy() < 0)) for first, last in pairwise(bounds.tolist())]
        starts = list(accumulate(grown, initial=0))
        if fill.shape != (starts[-1] * size,):
            raise InvalidInput(
                f"fill of shape {tuple(fill.shape)}", f"({starts[-1] * size},)", "Give one value for each grown weight."
            )
    fills = (
        fill.detach().to(old.device, old.dtype).contiguous()
        if isinstance(fill, Tensor)
        else old.new_full((size,), fill)
    )
    step = size * old.element_size() if isinstance(fill, Tensor) else 0
    cuts = bounds, torch.tensor(starts, dtype=torch.int32, device="cpu")
    fast = partial(_fast, old, source, fills, new.detach(), cuts=cuts, step=step)
    fits = attempt(fast) if old.is_cpu else None
    if fits is None:
        fits = _slow(old, source, fills, new.detach())
    if not fits:
        raise InvalidInput(
            f"a source of {int(source.max())}",
            f"at most {len(old) // size - 1}",
            "The values belong to another topology.",
        )
    return new


def _check(old: Tensor, source: Tensor, new: Tensor, size: int) -> None:
    if not (source.is_cpu and new.device == old.device and old.is_floating_point()):
        raise InvalidInput(
            f"values of {old.dtype} on {old.device} to {new.device}, by a source on {source.device}",
            "floats on one device, by a source on the CPU",
            "Leave out= out, and pass what `rewire` returned.",
        )
    if old.dim() != 1 or source.dim() != 1 or source.dtype != torch.int32 or len(old) % size:
        raise InvalidInput(
            f"values {tuple(old.shape)} at {source.dtype} {tuple(source.shape)}",
            f"values (grains * {size},) at int32 (grains,)",
            "Pass what `rewire` returned, and the size of the grains.",
        )
    if new.shape != (len(source) * size,) or new.dtype != old.dtype or not new.is_contiguous():
        raise InvalidInput(
            f"out of {new.dtype} {tuple(new.shape)}",
            f"contiguous {old.dtype} ({len(source) * size},)",
            "Leave out= out.",
        )


def _fast(
    old: Tensor,
    source: Tensor,
    fills: Tensor,
    new: Tensor,
    target: Target,
    *,
    cuts: tuple[Tensor, Tensor],
    step: int,
) -> bool:
    # Whether every source is a grain of `old`.
    chunks, size = torch.get_num_threads(), max(1, len(new) // max(len(source), 1))
    bounds, starts = cuts
    wrong = torch.zeros(1, dtype=torch.int32, device="cpu")
    Launch(
        KernelSpec("move", target.isa, rows=size, size=old.element_size()), chunks, chunks, old=old, new=new, source=source,
        fill=fills, grown=starts, bounds=bounds, wrong=wrong, PASSES=1, STEP=step, GRAINS=len(old) // size,
    )()  # fmt: skip
    return not wrong.item()


def _slow(old: Tensor, source: Tensor, fills: Tensor, new: Tensor) -> bool:
    if not len(source):
        return True
    places = new.view(len(source), -1)
    if int(source.max()) >= len(old) // places.shape[1]:
        return False
    source = source.to(old.device)
    stays = source >= 0
    places[stays] = old.view(-1, places.shape[1])[source[stays].long()]
    places[~stays] = fills.view(-1, places.shape[1])
    return True
