"""The three products grain by grain: only what is kept is multiplied.

A grain of R outputs by C inputs reads each number of the dense operand once for R outputs, forward, and for C inputs, of the
input gradient: these reads take the time. Samples of a feature lie side by side, so an operand that is stored row by row is
turned first. Forward product and input gradient are one kernel, over the rows and over the columns of the topology.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pollard.kernels.products.cuda.launch import above, interpreted, launch
from pollard.kernels.products.cuda.rows import Rows
from pollard.kernels.products.task import HALVES

FEW = 16  # samples below which the dense operand is read as it lies
SIDE = 128  # of the square tiles in which it is turned


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program makes at once: samples, and inputs that it takes at a time, by `warps`, with `stages` of loads under way.

    way: `dot` of matrices, `lone` where each number read serves one output, `vector` for one sample. float32: how a `dot` multiplies it
    where all of its precision is wanted, `ieee` by ordinary units or `tf32x3` by three products in matrix units.
    """

    way: str
    samples: int
    depth: int
    float32: str = "ieee"
    warps: int = 4
    stages: int = 3

    def options(self, outs: int) -> dict[str, Any]:
        """As kernels take them."""
        return {
            "WAY": self.way,
            "WIDTH": above(outs),
            "SAMPLES": self.samples,
            "DEPTH": self.depth,
            "WIDEN": interpreted(),  # whose products of bfloat16 are wrong
            "PRECISION": "tf32" if tf32() else self.float32,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def gather_tile(outs: int, ins: int, batch: int, dtype: torch.dtype, *, permuted: bool) -> Tile:
    """That of forward products and input gradients: the fastest on an H200, of those that benchmarks/products_cuda.py tries."""
    if batch == 1:
        return Tile("vector", 1, 256)
    if outs == 1:
        return Tile("lone", _samples(batch, 512 if dtype in HALVES else 128), 8)
    if dtype in HALVES:
        return Tile("dot", _samples(batch, 256 if ins > 1 else 128), 32)
    # Forward, operands come as ordinary units want them; by columns they are turned within the kernel, which matrix units do not mind.
    return Tile("dot", _samples(batch, 128), 16, "tf32x3" if permuted else "ieee")


def sample_tile(outs: int, batch: int, dtype: torch.dtype) -> Tile:
    """That of value gradients."""
    if outs == 1:
        return Tile("lone", _samples(batch, 64), 32)
    return Tile("dot", _samples(batch, 64), 128) if dtype in HALVES else Tile("dot", _samples(batch, 32), 64, "tf32x3")


def _samples(batch: int, most: int) -> int:
    return min(max(above(batch), 16), most)


def gather(
    x: Tensor, values: Tensor, bias: Tensor | None, y: Tensor, rows: Rows, *, activation: str | None, tile: Tile
) -> None:
    """``y = x @ W.T + bias``, then the activation, of the W that `rows` are those of; bias and activation in float32."""
    x = side_by_side(x)
    launch(
        "gather", (len(rows.order), -(-len(x) // tile.samples)), x.device,
        x, values, values if bias is None else bias, y,
        *rows.arrays, rows.order, len(x), *x.stride(), *y.stride(),
        BIAS=bias is not None, ACTIVATION=activation or "", **rows.walk, **tile.options(rows.outs),
    )  # fmt: skip


def sample(grad: Tensor, x: Tensor, out: Tensor, rows: Rows, *, tile: Tile) -> None:
    """``out = (grad.T @ x)`` at the kept weights."""
    grad, x = side_by_side(grad), side_by_side(x)
    launch(
        "sample", (len(rows.order), -(-rows.longest * rows.ins // tile.depth)), x.device,
        grad, x, out, rows.pointers, rows.places, rows.order, len(x), *grad.stride(), *x.stride(),
        OUTS=rows.outs, INS=rows.ins, **tile.options(rows.outs),
    )  # fmt: skip


def side_by_side(tensor: Tensor) -> Tensor:
    """The same numbers with the samples of a feature side by side, in memory of their own where they were not; few as they are."""
    if tensor.stride(0) == 1 or len(tensor) < FEW:
        return tensor
    batch, features = tensor.shape
    turned = tensor.new_empty_strided((batch, features), (1, batch))
    launch(
        "turn", (-(-features // SIDE), -(-batch // SIDE)), tensor.device,
        tensor, turned, batch, features, *tensor.stride(), SIDE=SIDE,
    )  # fmt: skip
    return turned


def tf32() -> bool:
    """Whether the user allows torch to multiply float32 in tf32."""
    return torch.get_float32_matmul_precision() != "highest"


__all__ = ["Tile", "gather", "gather_tile", "sample", "sample_tile", "tf32"]
