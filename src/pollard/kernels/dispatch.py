"""The three products with a sparse weight, without autograd: each picks a generated kernel, or the slow twin.

A kernel runs for float32 on the CPU. Everything else, and ``POLLARD_TARGET=reference``, takes the twin in `reference`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pollard.errors import KernelError, KernelFallback
from pollard.formats.topology import Topology
from pollard.kernels import reference, tuning
from pollard.kernels.emit.panels import Panels
from pollard.kernels.emit.sample import STEP as BATCH_STEP
from pollard.kernels.launch import launch
from pollard.kernels.operand import Operand
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import Target, current
from pollard.kernels.tiling import bounds, forget, tiling, widths
from pollard.kernels.tuning import Choice, Decision

# Vectors a panel, best guess first: they share the registers with the rows of a block.
VECTORS = {
    "avx512": {1: (8, 4, 12), 2: (8, 4), 4: (6, 4)},
    "avx2": {1: (8, 12, 4), 2: (5, 4), 4: (3, 2)},
    "neon": {1: (16, 8), 2: (8, 4), 4: (6, 4)},
}


@dataclass(frozen=True, slots=True)
class Product:
    """One product to be computed: what is common to choosing, tuning and running a kernel for it."""

    operation: str
    topology: Topology
    operand: Operand
    target: Target
    threads: int

    @property
    def batch(self) -> int:
        """Columns of the dense operand."""
        return self.operand.tensor.shape[0]

    @property
    def block(self) -> int:
        """Rows of a grain that are worked on at a time."""
        return min(self.topology.pattern.rows, 4, self.target.lanes)

    def decide(self, run: Callable[[Choice], object] | None) -> Decision:
        """Which panels and tiles to use, by `run`ning the candidates if they have never been measured."""
        key = tuning.problem(
            self.operation, self.target, self.topology, self.batch, self.operand.layout, self.threads
        )
        known = tuning.known(key)
        if known is not None:
            return known
        before = widths(self.topology)
        decision = tuning.decide(key, self.topology.nnz * self.batch, self._candidates(), run)
        chosen = min(decision.choice.width or self.topology.shape[1], self.topology.shape[1])
        forget(self.topology, widths(self.topology) - before - {chosen})
        return decision

    def _candidates(self) -> list[Choice]:
        lanes = self.target.lanes
        if self.operation == "sample":
            return tuning.candidates(self.topology, [(0, 4 * min(self.batch, BATCH_STEP))])
        parts = -(-self.batch // lanes)
        most = dict.fromkeys(min(option, parts) for option in VECTORS[self.target.isa][self.block])
        direct = self.operand.features_first and self.operation == "gather"
        return tuning.candidates(self.topology, [(vectors, 4 * lanes * vectors) for vectors in most], direct=direct)

    def panels(self, choice: Choice) -> Panels:
        """How `choice` cuts the batch; dot products take it whole."""
        if self.operation == "sample":
            return Panels(count=1, vectors=1, wide=0, last=0)
        return Panels.cut(self.batch, self.target.lanes, choice.vectors)

    def spec(self, choice: Choice, *, bias: bool = False, relu: bool = False) -> KernelSpec:
        """The kernel for `choice`."""
        panels = self.panels(choice)
        return KernelSpec(
            self.operation,
            self.target.isa,
            rows=self.topology.pattern.rows,
            block=self.block,
            vectors=panels.vectors,
            wide=panels.wide > 0,
            ragged=panels.last > 0,
            tiled=0 < choice.width < self.topology.shape[1],
            packed=choice.packed,
            bias=bias,
            relu=relu,
        )


def forward(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ W.T + bias`` for x `(batch, in)`, then ReLU if asked: `(batch, out)`, features-first in memory."""
    target = _target(x, values)
    batch, out = x.shape[0], topology.shape[0]
    if target is None or 0 in (batch, out, topology.grains):
        return reference.forward(x, values, topology, bias, relu=relu)
    product = Product("gather", topology, Operand.of(x.detach()), target, torch.get_num_threads())
    values = values.detach().contiguous()
    offset = None if bias is None else bias.detach().contiguous()

    def run(choice: Choice) -> Tensor:
        return _gather(product, choice, values, offset, relu=relu)

    return _or_twin(product, run, lambda: reference.forward(x, values, topology, bias, relu=relu))


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W`` for grad `(batch, out)`: `(batch, in)`, features-first in memory."""
    target = _target(grad, values)
    if target is None or 0 in (grad.shape[0], topology.shape[1], topology.grains):
        return reference.input_grad(grad, values, topology)
    product = Product("scatter", topology, Operand.of(grad.detach()), target, torch.get_num_threads())
    values = values.detach().contiguous()
    return _or_twin(
        product, lambda choice: _scatter(product, choice, values), lambda: reference.input_grad(grad, values, topology)
    )


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``(grad.T @ x)`` at the kept weights: one number a value."""
    target = _target(grad, x)
    if target is None or 0 in (grad.shape[0], topology.grains):
        return reference.value_grad(grad, x, topology)
    threads = torch.get_num_threads()
    upstream, inputs = Operand.of(grad.detach()), Operand.of(x.detach())
    product = Product("sample", topology, inputs, target, threads)

    def twin() -> Tensor:
        return reference.value_grad(grad, x, topology)

    try:
        rows, columns = upstream.rows_of_features(target, threads), inputs.rows_of_features(target, threads)
    except KernelError as refused:
        return _fall_back(refused, twin)
    return _or_twin(product, lambda choice: _sample(product, choice, rows, columns), twin)


def _target(*operands: Tensor) -> Target | None:
    if any(each.dtype != torch.float32 or each.device.type != "cpu" for each in operands):
        return None
    return current()


def _or_twin(product: Product, run: Callable[[Choice], Tensor], twin: Callable[[], Tensor]) -> Tensor:
    try:
        return run(product.decide(run).choice)
    except KernelError as refused:
        return _fall_back(refused, twin)


def _fall_back(refused: KernelError, twin: Callable[[], Tensor]) -> Tensor:
    _warn(str(refused))
    return twin()


@cache
def _warn(message: str) -> None:
    warnings.warn(f"{message} Plain torch runs instead, slowly.", KernelFallback, stacklevel=5)


def _gather(product: Product, choice: Choice, values: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    topology, target, threads = product.topology, product.target, product.threads
    panels = product.panels(choice)
    operand = product.operand
    x = operand.packed(target, panels, threads) if choice.packed else operand.tensor
    y = torch.empty(topology.shape[0], product.batch)
    tiles = tiling(topology, choice.width or topology.shape[1])
    launch(
        product.spec(choice, bias=bias is not None, relu=relu), panels.count * threads, threads,
        tiles=tiles.pointers, columns=topology.columns, values=values, x=x, y=y, bias=0 if bias is None else bias,
        bounds=bounds(topology, threads), TILES=tiles.tiles, STRIDE=tiles.stride, END=tiles.end, IN=topology.shape[1],
        LDX=operand.stride, LDY=product.batch,
        PANELS=panels.count, WIDE=panels.wide, LAST=panels.last, CHUNKS=threads,
    )  # fmt: skip
    return y.t()


def _scatter(product: Product, choice: Choice, values: Tensor) -> Tensor:
    topology, target, threads = product.topology, product.target, product.threads
    panels = product.panels(choice)
    dy = product.operand.packed(target, panels, threads)
    dx = torch.empty(topology.shape[1], product.batch)
    tiles = tiling(topology, choice.width or topology.shape[1])
    room = tiles.width * (panels.vectors + 1) * target.lanes
    chunks = min(threads, tiles.tiles)
    cuts = torch.arange(chunks + 1).mul_(tiles.tiles).div_(chunks, rounding_mode="floor").int()
    launch(
        product.spec(choice), panels.count * chunks, threads,
        tiles=tiles.pointers, columns=topology.columns, values=values, x=dy, y=dx, scratch=torch.empty(threads * room),
        bounds=cuts, TILES=tiles.tiles, STRIDE=tiles.stride, END=tiles.end, GROUPS=topology.groups,
        IN=topology.shape[1], WIDTH=tiles.width, LDX=0, LDY=product.batch,
        PANELS=panels.count, WIDE=panels.wide, LAST=panels.last, CHUNKS=chunks, SCRATCH=room,
    )  # fmt: skip
    return dx.t()


def _sample(product: Product, choice: Choice, rows: tuple[Tensor, int], columns: tuple[Tensor, int]) -> Tensor:
    topology, threads = product.topology, product.threads
    dw = torch.empty(topology.nnz)
    tiles = tiling(topology, choice.width or topology.shape[1])
    launch(
        product.spec(choice), threads, threads,
        tiles=tiles.pointers, columns=topology.columns, values=dw, x=columns[0], dy=rows[0],
        bounds=bounds(topology, threads), TILES=tiles.tiles, STRIDE=tiles.stride, END=tiles.end,
        BATCH=product.batch, LDX=columns[1], LDY=rows[1],
    )  # fmt: skip
    return dw
