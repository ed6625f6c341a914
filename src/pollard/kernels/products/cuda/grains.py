"""The three products grain by grain: only what is kept is multiplied.

A grain of R outputs by C inputs reads each number of the dense operand once for R outputs, forward, and for C inputs, of the
input gradient: these reads take the time. Samples of a feature lie side by side, so an operand that is stored row by row is
turned first. Forward product and input gradient are one kernel, over the rows and over the columns of the topology.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pollard.kernels.products.cuda.dense import Dense, turning
from pollard.kernels.products.cuda.launch import Launch, above, interpreted
from pollard.kernels.products.cuda.rows import Rows
from pollard.kernels.products.task import HALVES


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
    x: Dense, y: Dense, rows: Rows, tile: Tile, *, bias: bool, activation: str | None
) -> Callable[[Tensor, Tensor, Tensor | None, Tensor], None]:
    """What computes ``y = x @ W.T + bias``, then the activation, of x, values, bias and y; W is what `rows` are those of.

    Bias and activation are of float32 sums.
    """
    turn, x = turning(x), x.side_by_side
    grid = len(rows.order), -(-x.batch // tile.samples), 1
    launch = Launch(
        "gather", *rows.arrays, rows.order, x.batch, *x.strides, *y.strides,
        BIAS=bias, ACTIVATION=activation or "", **rows.walk, **tile.options(rows.outs),
    )  # fmt: skip

    def run(x: Tensor, values: Tensor, bias: Tensor | None, y: Tensor) -> None:
        launch(grid, (turn(x), values, values if bias is None else bias, y))

    return run


def sample(grad: Dense, x: Dense, rows: Rows, tile: Tile) -> Callable[[Tensor, Tensor, Tensor], None]:
    """What computes ``out = (grad.T @ x)`` at the kept weights, of grad, x and out."""
    turn_grad, turn_x = turning(grad), turning(x)
    grid = len(rows.order), -(-rows.longest * rows.ins // tile.depth), 1
    launch = Launch(
        "sample", rows.pointers, rows.places, rows.order, x.batch, *grad.side_by_side.strides, *x.side_by_side.strides,
        OUTS=rows.outs, INS=rows.ins, **tile.options(rows.outs),
    )  # fmt: skip

    def run(grad: Tensor, x: Tensor, out: Tensor) -> None:
        launch(grid, (turn_grad(grad), turn_x(x), out))

    return run


def tf32() -> bool:
    """Whether the user allows torch to multiply float32 in tf32."""
    matmul = torch.backends.cuda.matmul
    # From torch 2.9 on this knows of all ways to ask for it, some of which the older names raise for.
    asked: str | None = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if asked is None else asked == "tf32"


__all__ = ["Tile", "gather", "gather_tile", "sample", "sample_tile", "tf32"]
