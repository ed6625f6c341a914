"""The three products with a sparse weight, without autograd: each picks a generated kernel, or the slow twin.

A kernel runs for float32, and for half precision that is brought to it; float64 takes torch's sparse products. Everything
else, and ``POLLARD_TARGET=reference``, takes the twin in `reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pollard.errors import KernelError
from pollard.formats.topology import Topology
from pollard.kernels import precisions, reference, tuning
from pollard.kernels.derived import (
    Tiling,
    bounds,
    by_columns,
    calls,
    forget,
    forget_columns,
    has_columns,
    tiling,
    widths,
)
from pollard.kernels.emit.panels import Panels
from pollard.kernels.emit.sample import STEP as BATCH_STEP
from pollard.kernels.fallback import warn
from pollard.kernels.launch import Launch, equal_runs
from pollard.kernels.once import one_at_a_time
from pollard.kernels.operand import Operand, Packing, output
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import Target, current
from pollard.kernels.tuning import Build, Choice, Decision
from pollard.kernels.workspace import trim, workspace

# Vectors a panel, best guess first: they share the registers with the rows of a block.
VECTORS: dict[str, dict[int, tuple[int, ...]]] = {
    "avx512": {1: (8, 4, 12), 2: (8, 4), 4: (6, 4)},
    "avx2": {1: (8, 6, 12, 4), 2: (5, 4), 4: (3, 2)},
    "neon": {1: (16, 8), 2: (8, 4), 4: (6, 4)},
}


# Batches whose calls are found at once; the others look their choice up again.
RECENT = 64


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

    @one_at_a_time
    def decide(self, build: Build | None) -> Decision:
        """Which panels and tiles to use, by running what `build` makes of the candidates if they were never measured."""
        key = tuning.problem(
            self.operation, self.target, self.topology, self.batch, layout=self.operand.layout, threads=self.threads
        )
        known = tuning.known(key, self._candidates)
        if known is not None:
            return known
        before, needed = widths(self.topology), has_columns(self.topology)
        decision = tuning.decide(key, self.topology.nnz * self.batch, self._candidates(), build)
        walked = self.topology
        if decision.choice.transposed:
            walked = by_columns(self.topology)[0]
            forget(self.topology, widths(self.topology) - before)
        elif not needed:
            forget_columns(self.topology)
        chosen = min(decision.choice.width or walked.shape[1], walked.shape[1])
        forget(walked, widths(walked) - before - {chosen})
        trim()
        return decision

    def _candidates(self) -> list[Choice]:
        lanes = self.target.lanes
        if self.operation == "sample":
            # As many grains at a time as make a vector of dot products: a shorter run costs as much as a whole one.
            whole = lanes / self.block
            return tuning.candidates(self.topology, [(0, 4 * min(self.batch, BATCH_STEP))], run=whole)
        parts = -(-self.batch // lanes)
        options = VECTORS[self.target.isa][self.block]
        most = dict.fromkeys(min(option, parts) for option in options)
        panels = [(vectors, 4 * lanes * vectors) for vectors in most]
        if self.operation == "gather":
            return tuning.candidates(self.topology, panels, direct=self.operand.features_first)
        scattered = tuning.candidates(self.topology, panels)
        if self.topology.pattern.rows > 1:
            return scattered
        return tuning.candidates(self.topology, panels, transposed=True) + scattered

    def panels(self, choice: Choice) -> Panels:
        """How `choice` cuts the batch; dot products take it whole."""
        if self.operation == "sample":
            return Panels(count=1, vectors=1, wide=0, last=0)
        return Panels.cut(self.batch, self.target.lanes, choice.vectors)

    def spec(self, choice: Choice, *, bias: bool = False, relu: bool = False) -> KernelSpec:
        """The kernel for `choice`."""
        panels = self.panels(choice)
        columns = self.topology.shape[0 if choice.transposed else 1]
        return KernelSpec(
            "gather" if choice.transposed else self.operation,
            self.target.isa,
            rows=self.topology.pattern.rows,
            block=self.block,
            vectors=panels.vectors,
            wide=panels.wide > 0,
            ragged=panels.last > 0,
            tiled=0 < choice.width < columns,
            packed=choice.packed,
            permuted=choice.transposed,
            bias=bias,
            relu=relu,
        )


# A prepared call takes the panels of the batch, then its operands.
Call = Callable[..., Tensor]


def forward(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ W.T + bias`` for x `(batch, in)`, then ReLU if asked: `(batch, out)`, features-first in memory."""
    target = current()
    if target is None or x.dtype is not torch.float32 or not (len(x) and topology.shape[0] and topology.grains):
        return _without_kernel(forward, target, x, values, topology, bias, relu=relu)
    operand = Operand.of(x)
    operands = (operand, values.contiguous(), 0 if bias is None else bias.contiguous())
    y = _run("gather", topology, operand, target, operands, (bias is not None, relu))
    return reference.forward(x, values, topology, bias, relu=relu) if y is None else y


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W`` for grad `(batch, out)`: `(batch, in)`, features-first in memory."""
    target = current()
    if target is None or grad.dtype is not torch.float32 or not (len(grad) and topology.shape[1] and topology.grains):
        return _without_kernel(input_grad, target, grad, values, topology)
    operand = Operand.of(grad)
    dx = _run("scatter", topology, operand, target, (operand, values.contiguous()), ())
    return reference.input_grad(grad, values, topology) if dx is None else dx


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``(grad.T @ x)`` at the kept weights: one number a value."""
    target = current()
    if target is None or grad.dtype is not torch.float32 or not (len(grad) and topology.grains):
        return _without_kernel(value_grad, target, grad, x, topology)
    upstream, inputs = Operand.of(grad), Operand.of(x)
    dw = _run("sample", topology, inputs, target, (upstream, inputs), (upstream.features_first,))
    return reference.value_grad(grad, x, topology) if dw is None else dw


def _without_kernel(product: Callable[..., Tensor], target: Target | None, *operands: Any, **options: Any) -> Tensor:
    # Other precisions have ways of their own; the twin is left what is empty, and where it is asked for.
    dtype = operands[0].dtype
    if target is not None and dtype in precisions.HALVES:
        return precisions.rounded(product, *operands, **options)
    ways = precisions if target is not None and dtype is torch.float64 else reference
    y: Tensor = getattr(ways, product.__name__)(*operands, **options)
    return y


Operands = tuple[Any, ...]
Variant = tuple[bool, ...]


def _run(  # noqa: PLR0917 - called at every product: names would cost
    operation: str, topology: Topology, operand: Operand, target: Target, operands: Operands, variant: Variant
) -> Tensor | None:
    # The product; None, after one warning, where its kernel does not compile.
    key = (operation, len(operand.tensor), operand.features_first, variant, torch.get_num_threads(), target.isa)
    recent = calls(topology).recent
    found = recent.get(key)
    if found is None:
        product = Product(operation, topology, operand, target, torch.get_num_threads())
        try:
            found = _prepared(product, operands, variant)
        except KernelError as refused:
            warn(str(refused))
            return None
        if len(recent) >= RECENT:
            recent.clear()
        recent[key] = found
    call, panels = found
    y: Tensor = call(panels, *operands)
    return y


@one_at_a_time
def _prepared(product: Product, operands: Operands, variant: Variant) -> tuple[Call, Panels]:
    # What is prepared serves all batches that are cut alike, so that there are few of them however many batches come.
    known = calls(product.topology).prepared

    def build(choice: Choice) -> Callable[[], Tensor]:
        return partial(_made(product, choice, operands, variant), product.panels(choice), *operands)

    choice = product.decide(build).choice
    panels = product.panels(choice)
    layout = product.operand.features_first
    key = (product.operation, layout, variant, product.threads, product.target.isa, choice, panels.kind)
    call = known.get(key)
    if call is None:
        call = known[key] = _made(product, choice, operands, variant)
    return call, panels


def _made(product: Product, choice: Choice, operands: Operands, variant: Variant) -> Call:
    if product.operation == "gather":
        return _gather(product, choice, *variant)
    return _scatter(product, choice) if product.operation == "scatter" else _sample(product, choice, operands[0])


def _walk(topology: Topology, tiles: Tiling, chunks: int) -> dict[str, Tensor | int]:
    # What every kernel wants to know of the topology. A block of rows is so long that a tile of the dense operand, once in
    # cache, is used about 16 times a row of it, and so short that its grains stay in cache for all panels.
    block = math.ceil(16 / max(topology.density, 1e-6))
    passes = max(1, math.ceil(topology.groups / chunks / block))
    return {
        "tiles": tiles.pointers, "columns": topology.indices.columns, "bounds": bounds(topology, chunks * passes),
        "PASSES": passes, "TILES": tiles.tiles, "STRIDE": tiles.stride, "END": tiles.end,
    }  # fmt: skip


def _gather(product: Product, choice: Choice, bias: bool = False, relu: bool = False) -> Call:
    threads = product.threads
    topology, permutation = by_columns(product.topology) if choice.transposed else (product.topology, 0)
    out, width = topology.shape
    kind = product.panels(choice).kind
    pack = Packing(product.target, product.operand, kind, threads, purpose="operand") if choice.packed else None
    launch = Launch(
        product.spec(choice, bias=bias, relu=relu), threads, threads,
        **_walk(topology, tiling(topology, choice.width or width), threads), permutation=permutation,
        IN=width, CHUNKS=threads,
    )  # fmt: skip

    def call(panels: Panels, operand: Operand, values: Tensor, offset: Tensor | int) -> Tensor:
        batch = operand.tensor.shape[0]
        y = output(batch, out)
        x = operand.tensor if pack is None else pack(operand, panels)
        counts = (panels.count, panels.wide, panels.last)
        launch(values, x, y, offset, operand.stride, batch, *counts, units=panels.count * threads)
        return y

    return call


def _scatter(product: Product, choice: Choice) -> Call:
    # The transpose of an unstructured W can be gathered like W itself: no stores, for 8 bytes more a kept weight. Both add
    # in the order of rows, so both give the same bits.
    if choice.transposed:
        gathered = _gather(product, choice)
        return lambda panels, operand, values: gathered(panels, operand, values, 0)
    width, threads, lanes = product.topology.shape[1], product.threads, product.target.lanes
    pack = Packing(product.target, product.operand, product.panels(choice).kind, threads, purpose="operand")
    tiles = tiling(product.topology, choice.width or width)
    chunks = min(threads, tiles.tiles)
    cuts = torch.tensor(equal_runs(tiles.tiles, chunks), dtype=torch.int32, device="cpu")
    launch = Launch(
        product.spec(choice), chunks, threads, **_walk(product.topology, tiles, 1), cuts=cuts,
        GROUPS=product.topology.groups, IN=width, WIDTH=tiles.width, CHUNKS=chunks,
    )  # fmt: skip

    def call(panels: Panels, operand: Operand, values: Tensor) -> Tensor:
        batch = operand.tensor.shape[0]
        dx = output(batch, width)
        sums = workspace("sums", width * panels.columns(lanes))
        counts = (panels.count, panels.wide, panels.last)
        launch(values, pack(operand, panels), dx, sums, batch, *counts, units=panels.count * chunks)
        return dx

    return call


def _sample(product: Product, choice: Choice, upstream: Operand) -> Call:
    topology, target, threads = product.topology, product.target, product.threads
    packs = [
        None if each.features_first else Packing(target, each, (1, False, False), threads, purpose=purpose)
        for each, purpose in ((upstream, "upstream"), (product.operand, "operand"))
    ]
    launch = Launch(
        product.spec(choice), threads, threads,
        **_walk(topology, tiling(topology, choice.width or topology.shape[1]), threads),
    )  # fmt: skip

    def call(_: Panels, *operands: Operand) -> Tensor:
        batch = operands[0].tensor.shape[0]
        dw = torch.empty(topology.nnz, dtype=torch.float32, device="cpu")
        (dy, ldy), (x, ldx) = (
            (each.tensor, each.stride) if pack is None else transposed(pack, each, batch)
            for each, pack in zip(operands, packs, strict=True)
        )
        launch(dw, x, dy, batch, ldx, ldy)
        return dw

    def transposed(pack: Packing, operand: Operand, batch: int) -> tuple[Tensor, int]:
        whole = Panels.cut(batch, target.lanes, batch)
        return pack(operand, whole), whole.columns(target.lanes)

    return call
