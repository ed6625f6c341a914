"""The three products by torch's dense ones, some rows of the weight at a time.

Matrix units multiply some hundred numbers in the time that one is read, so to multiply by zeros too is often the faster way. A panel
holds at most `BYTES` of the weight, whatever its size, for the time of one product. Half precision is added up as torch does it, which
torch.backends.cuda.matmul has flags for, and is rounded before a bias is added and after; an infinite input makes outputs NaN that
keep no weight of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pollard.activations import activated_
from pollard.kernels.products.cuda.launch import above, launch
from pollard.kernels.products.cuda.rows import Rows

BYTES = 1 << 25
DEPTH = 1024  # numbers that a program moves at once


def multiply(x: Tensor, values: Tensor, bias: Tensor | None, y: Tensor, rows: Rows, *, activation: str | None) -> None:
    """``y = x @ W.T + bias``, then the activation, of the W that `rows` are those of."""
    for begin, end in _cut(rows, x.element_size()):
        features = slice(begin * rows.outs, end * rows.outs)
        # No panel has a name here: it is gone before the next is made.
        if bias is None:
            torch.mm(_spread(values, rows, begin, end, x.dtype), x.t(), out=y.t()[features])
        else:
            offset = bias[features, None].to(x.dtype)
            torch.addmm(offset, _spread(values, rows, begin, end, x.dtype), x.t(), out=y.t()[features])
    if activation is not None:
        y.copy_(activated_(y, activation))


def sample(grad: Tensor, x: Tensor, out: Tensor, rows: Rows) -> None:
    """``out = (grad.T @ x)`` at the kept weights."""
    for begin, end in _cut(rows, out.element_size()):
        own = grad.t()[begin * rows.outs : end * rows.outs]
        launch(
            "collect", (end - begin,), x.device,
            torch.mm(own, x) if out.dtype == x.dtype else torch.mm(own, x, out_dtype=out.dtype),
            out, rows.pointers, rows.places, begin, rows.width,
            OUTS=rows.outs, INS=rows.ins, WIDTH=above(rows.outs), DEPTH=max(DEPTH // above(rows.outs), 16),
        )  # fmt: skip


def _cut(rows: Rows, size: int) -> Iterator[tuple[int, int]]:
    """From which row to which each panel goes: of equal sizes, whole rows of grains."""
    count = len(rows.order)
    panels = -(-count * rows.outs * rows.width * size // BYTES)
    step = -(-count // min(max(panels, 1), count))
    for begin in range(0, count, step):
        yield begin, min(begin + step, count)


def _spread(values: Tensor, rows: Rows, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    panel = torch.zeros(((end - begin) * rows.outs, rows.width), dtype=dtype, device=values.device)
    launch(
        "spread", (end - begin,), values.device, values, panel, *rows.arrays, begin, rows.width,
        **rows.walk, WIDTH=above(rows.outs), DEPTH=max(DEPTH // above(rows.outs), 16),
    )  # fmt: skip
    return panel


__all__ = ["BYTES", "multiply", "sample"]
