"""The three products with a sparse weight, without autograd: each picks a generated kernel, or the slow twin.

A kernel runs for float32 on the CPU. Everything else, and ``POLLARD_TARGET=reference``, takes the twin in `reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pollard.errors import KernelError
from pollard.formats.topology import Topology
from pollard.kernels import reference, tuning
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
from pollard.kernels.operand import Operand, Packing
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


Call = Callable[..., Tensor]


def forward(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ W.T + bias`` for x `(batch, in)`, then ReLU if asked: `(batch, out)`, features-first in memory."""
    target = _target(x, values)
    if target is None or 0 in (x.shape[0], topology.shape[0], topology.grains):
        return reference.forward(x, values, topology, bias, relu=relu)
    operand, values = Operand.of(x), values.contiguous()
    offset = 0 if bias is None else bias.contiguous()

    def make(product: Product, choice: Choice) -> Call:
        return _gather(product, choice, bias=bias is not None, relu=relu)

    request = Request("gather", topology, operand, target, (bias is not None, relu))
    call = _prepared(request, make, (operand, values, offset))
    return reference.forward(x, values, topology, bias, relu=relu) if call is None else call(operand, values, offset)


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W`` for grad `(batch, out)`: `(batch, in)`, features-first in memory."""
    target = _target(grad, values)
    if target is None or 0 in (grad.shape[0], topology.shape[1], topology.grains):
        return reference.input_grad(grad, values, topology)
    operand, values = Operand.of(grad), values.contiguous()
    call = _prepared(Request("scatter", topology, operand, target, ()), _scatter, (operand, values))
    return reference.input_grad(grad, values, topology) if call is None else call(operand, values)


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``(grad.T @ x)`` at the kept weights: one number a value."""
    target = _target(grad, x)
    if target is None or 0 in (grad.shape[0], topology.grains):
        return reference.value_grad(grad, x, topology)
    upstream, inputs = Operand.of(grad), Operand.of(x)

    def make(product: Product, choice: Choice) -> Call:
        return _sample(product, choice, upstream)

    request = Request("sample", topology, inputs, target, (upstream.features_first,))
    call = _prepared(request, make, (upstream, inputs))
    return reference.value_grad(grad, x, topology) if call is None else call(upstream, inputs)


class Request(NamedTuple):
    """What is asked of a kernel at every call: cheap to make, since small layers feel each microsecond."""

    operation: str
    topology: Topology
    operand: Operand
    target: Target
    variant: tuple[bool, ...]


def _target(first: Tensor, second: Tensor) -> Target | None:
    if first.dtype != torch.float32 or second.dtype != torch.float32 or not (first.is_cpu and second.is_cpu):
        return None
    return current()


def _prepared(request: Request, make: Callable[[Product, Choice], Call], arguments: tuple[object, ...]) -> Call | None:
    # The call for this kind of product, made on first use; None, after one warning, where its kernel does not compile.
    operation, topology, operand, target, variant = request
    threads = torch.get_num_threads()
    key = (operation, operand.tensor.shape[0], operand.features_first, variant, threads, target.isa)
    known = calls(topology)
    call: Call | None = known.get(key)
    if call is None:
        product = Product(operation, topology, operand, target, threads)

        def build(choice: Choice) -> Callable[[], Tensor]:
            return partial(make(product, choice), *arguments)

        try:
            call = known[key] = make(product, product.decide(build).choice)
        except KernelError as refused:
            warn(str(refused))
    return call


def _walk(topology: Topology, tiles: Tiling, chunks: int) -> dict[str, Tensor | int]:
    # What every kernel wants to know of the topology. A block of rows is so long that a tile of the dense operand, once in
    # cache, is used about 16 times a row of it, and so short that its grains stay in cache for all panels.
    block = math.ceil(16 / max(topology.density, 1e-6))
    passes = max(1, math.ceil(topology.groups / chunks / block))
    return {
        "tiles": tiles.pointers, "columns": topology.columns, "bounds": bounds(topology, chunks * passes),
        "PASSES": passes, "TILES": tiles.tiles, "STRIDE": tiles.stride, "END": tiles.end,
    }  # fmt: skip


def _gather(product: Product, choice: Choice, *, bias: bool, relu: bool) -> Call:
    batch, threads = product.batch, product.threads
    topology, permutation = by_columns(product.topology) if choice.transposed else (product.topology, 0)
    out, width = topology.shape
    panels = product.panels(choice)
    packs = product.target, product.operand, panels, threads
    pack = Packing(*packs, purpose="operand") if choice.packed else None
    launch = Launch(
        product.spec(choice, bias=bias, relu=relu), panels.count * threads, threads,
        **_walk(topology, tiling(topology, choice.width or width), threads), permutation=permutation,
        IN=width, LDY=batch, PANELS=panels.count, WIDE=panels.wide, LAST=panels.last, CHUNKS=threads,
    )  # fmt: skip

    def call(operand: Operand, values: Tensor, offset: Tensor | int) -> Tensor:
        y = torch.empty(out, batch)
        x = operand.tensor if pack is None else pack(operand)
        launch(values, x, y, offset, operand.stride)
        return y.t()

    return call


def _scatter(product: Product, choice: Choice) -> Call:
    # The transpose of an unstructured W can be gathered like W itself: no stores, for 8 bytes more a kept weight. Both add
    # in the order of rows, so both give the same bits.
    if choice.transposed:
        gathered = _gather(product, choice, bias=False, relu=False)
        return lambda operand, values: gathered(operand, values, 0)
    width, batch, threads = product.topology.shape[1], product.batch, product.threads
    panels = product.panels(choice)
    pack = Packing(product.target, product.operand, panels, threads, purpose="operand")
    tiles = tiling(product.topology, choice.width or width)
    room = width * panels.columns(product.target.lanes)
    chunks = min(threads, tiles.tiles)
    cuts = torch.tensor(equal_runs(tiles.tiles, chunks), dtype=torch.int32)
    launch = Launch(
        product.spec(choice), panels.count * chunks, threads, **_walk(product.topology, tiles, 1), cuts=cuts,
        GROUPS=product.topology.groups, IN=width, WIDTH=tiles.width, LDY=batch,
        PANELS=panels.count, WIDE=panels.wide, LAST=panels.last, CHUNKS=chunks,
    )  # fmt: skip

    def call(operand: Operand, values: Tensor) -> Tensor:
        dx = torch.empty(width, batch)
        launch(values, pack(operand), dx, workspace("sums", room))
        return dx.t()

    return call


def _sample(product: Product, choice: Choice, upstream: Operand) -> Call:
    topology, target, threads = product.topology, product.target, product.threads
    whole = Panels.cut(product.batch, target.lanes, product.batch)
    packs = [
        None if each.features_first else Packing(target, each, whole, threads, purpose=purpose)
        for each, purpose in ((upstream, "upstream"), (product.operand, "operand"))
    ]
    launch = Launch(
        product.spec(choice), threads, threads,
        **_walk(topology, tiling(topology, choice.width or topology.shape[1]), threads), BATCH=product.batch,
    )  # fmt: skip

    def call(*operands: Operand) -> Tensor:
        dw = torch.empty(topology.nnz)
        (dy, ldy), (x, ldx) = (
            (each.tensor, each.stride) if pack is None else (pack(each), pack.columns)
            for each, pack in zip(operands, packs, strict=True)
        )
        launch(dw, x, dy, ldx, ldy)
        return dw

    return call
