"""Which weights are above bounds that are products of a number of their row and one of their column, for many such bounds at once."""

from __future__ import annotations

import struct
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pollard.kernels.code.fallback import attempt
from pollard.kernels.code.launch import Launch
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target

# How far from 1 a product of three fp32 numbers, each rounded once, must be to be told from one that is 1.
BAND = 2.0**-20


class Found(NamedTuple):
    """Weights that are listed: how many of each row, int32 `(rows,)`, their columns, int32, ascending in each row, and themselves."""

    counts: Tensor
    columns: Tensor
    values: Tensor


def outlasting(weights: Tensor, a: Tensor, b: Tensor) -> Found:
    """The weights whose products ``|w_ij| a_ki b_kj`` are above 1 for every k; all of them where there is no k.

    Of one that is too close to a bound for fp32 to tell, the ones' complement of the column is listed, which is negative.
    weights: `(rows, columns)`, a: `(k, rows)`, b: `(k, columns)`, contiguous fp32, of which no product overflows or is subnormal
    unless it is 0.

    >>> found = outlasting(torch.tensor([[3.0, 0.5, -1.0], [0.1, -4.0, 2.0]]), torch.tensor([[1.0, 0.5]]), torch.ones(1, 3))
    >>> found.counts.tolist(), found.columns.tolist(), found.values.tolist()
    ([2, 2], [0, -3, 1, -3], [3.0, -1.0, -4.0, 2.0])
    """
    made = _by_kernel("outlast", weights, a, b, len(a))
    return outlasting_slowly(weights, a, b) if made is None else made[0]


def between(weights: Tensor, a: Tensor, b: Tensor) -> tuple[Found, int]:
    """The weights that `outlasting` lists for all k but the last, those left out that are above 1 with it as well, for sure; and how
    many these are.

    >>> weights, b = torch.tensor([[3.0, 0.5, -1.0], [0.1, -4.0, 2.0]]), torch.tensor([[1.0] * 3, [0.3] * 3])
    >>> found, above = between(weights, torch.ones(2, 2), b)
    >>> found.counts.tolist(), found.columns.tolist(), above
    ([2, 1], [0, -3, 2], 1)
    """
    made = _by_kernel("between", weights, a, b, len(a) - 1)
    return between_slowly(weights, a, b) if made is None else made


def outlasting_slowly(weights: Tensor, a: Tensor, b: Tensor) -> Found:
    """`outlasting`, by masks: its specification."""
    least = _least(weights, a, b)
    return _listed(weights, least, least > 1 - BAND)


def between_slowly(weights: Tensor, a: Tensor, b: Tensor) -> tuple[Found, int]:
    """`between`, by masks: its specification."""
    least, top = _least(weights, a[:-1], b[:-1]), _least(weights, a[-1:], b[-1:])
    sure = torch.minimum(least, top) > 1 + BAND
    return _listed(weights, least, (least > 1 - BAND) & ~sure), int(sure.sum())


def _least(weights: Tensor, a: Tensor, b: Tensor) -> Tensor:
    least = torch.full_like(weights, torch.inf)
    for rows, columns in zip(a, b, strict=True):
        least = torch.minimum(least, rows[:, None] * columns * weights.abs())
    return least


def _listed(weights: Tensor, least: Tensor, mask: Tensor) -> Found:
    columns, sure = mask.nonzero()[:, 1].int(), least[mask] > 1 + BAND
    return Found(mask.sum(1, dtype=torch.int32), torch.where(sure, columns, ~columns), weights[mask])


def _by_kernel(operation: str, weights: Tensor, a: Tensor, b: Tensor, bars: int) -> tuple[Found, int] | None:
    if not 0 < weights.numel() < 1 << 31:
        return None
    return attempt(partial(_found, operation, weights, (a, b), bars))


def _found(operation: str, weights: Tensor, by: tuple[Tensor, Tensor], bars: int, target: Target) -> tuple[Found, int]:
    rows, columns = weights.shape
    found, values = (torch.empty(rows, columns, dtype=kind, device="cpu") for kind in (torch.int32, torch.float32))
    counts = torch.empty(rows, 2, dtype=torch.int32, device="cpu")
    low, high = (struct.unpack("i", struct.pack("f", 1 + side * BAND))[0] for side in (-1, 1))
    Launch(
        KernelSpec(operation, target.isa), rows, torch.get_num_threads(), weights=weights, a=by[0], b=by[1], found=found, values=values,
        counts=counts, PASSES=1, ROWS=rows, COLUMNS=columns, BARS=bars, LOW=low, HIGH=high,
    )()  # fmt: skip
    listed, passed = counts.unbind(1)
    parts = [[row[:count] for row, count in zip(each, listed.tolist(), strict=True)] for each in (found, values)]
    return Found(listed, *(torch.cat(part) for part in parts)), int(passed.sum())
