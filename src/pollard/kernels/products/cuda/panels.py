"""The three products by torch's dense ones, some rows of the weight at a time.

Matrix units multiply some hundred numbers in the time that one is read, so to multiply by zeros too is often the faster way. A panel
holds at most `BYTES` of the weight, whatever its size, for the time of one product. Half precision is added up as torch does it, which
torch.backends.cuda.matmul has flags for, and is rounded before a bias is added and after; an infinite input makes outputs NaN that
keep no weight of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pollard.activations import activated_
from pollard.kernels.code.launch import runs_of
from pollard.kernels.products.cuda.dense import Dense
from pollard.kernels.products.cuda.launch import Launch, above
from pollard.kernels.products.cuda.rows import Rows

BYTES = 1 << 25
DEPTH = 1024  # numbers that a program moves at once


def multiply(
    x: Dense, rows: Rows, *, activation: str | None
) -> Callable[[Tensor, Tensor, Tensor | None, Tensor], None]:
    """What computes ``y = x @ W.T + bias``, then the activation, of x, values, bias and y; W is what `rows` are those of."""
    cuts = _cut(rows, x.dtype)
    spread = Launch("spread", *rows.arrays, rows.width, **rows.walk, **_program(rows))

    def panel(values: Tensor, begin: int, end: int) -> Tensor:
        made = values.new_zeros(((end - begin) * rows.outs, rows.width), dtype=x.dtype)
        spread((end - begin, 1, 1), (values, made), begin)
        return made

    def run(x: Tensor, values: Tensor, bias: Tensor | None, y: Tensor) -> None:
        for begin, end in cuts:
            features = slice(begin * rows.outs, end * rows.outs)
            # No panel has a name here: it is gone before the next is made.
            if bias is None:
                torch.mm(panel(values, begin, end), x.t(), out=y.t()[features])
            else:
                offset = bias[features, None].to(x.dtype)
                torch.addmm(offset, panel(values, begin, end), x.t(), out=y.t()[features])
        if activation is not None:
            y.copy_(activated_(y, activation))

    return run


def sample(rows: Rows, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], None]:
    """What computes ``out = (grad.T @ x)`` at the kept weights, of grad, x and out, of `dtype`."""
    cuts = _cut(rows, dtype)
    collect = Launch("collect", rows.pointers, rows.places, rows.width, OUTS=rows.outs, INS=rows.ins, **_program(rows))

    def run(grad: Tensor, x: Tensor, out: Tensor) -> None:
        for begin, end in cuts:
            own = grad.t()[begin * rows.outs : end * rows.outs]
            panel = torch.mm(own, x) if out.dtype == x.dtype else torch.mm(own, x, out_dtype=out.dtype)
            collect((end - begin, 1, 1), (panel, out), begin)
            del panel

    return run


def _program(rows: Rows) -> dict[str, int]:
    width = above(rows.outs)
    return {"WIDTH": width, "DEPTH": max(DEPTH // width, 16)}


def _cut(rows: Rows, dtype: torch.dtype) -> list[tuple[int, int]]:
    """From which row of grains to which each panel goes."""
    return runs_of(len(rows.order), BYTES // (rows.outs * rows.width * dtype.itemsize))


__all__ = ["BYTES", "multiply", "sample"]
