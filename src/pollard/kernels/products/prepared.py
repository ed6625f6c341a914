"""Calls of kernels, prepared: for a way to cut batches, then for one batch and layout, so that a call itself does little."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.code.emit.abreast import width as width_of
from pollard.kernels.code.emit.bitmap import WORD, rows_abreast, vector_of
from pollard.kernels.code.emit.n_of_m import PAD as N_OF_M_PAD
from pollard.kernels.code.emit.panels import Panels
from pollard.kernels.code.emit.sddmm import STEP as BATCH_STEP
from pollard.kernels.code.launch import Launch, address, equal_runs
from pollard.kernels.code.once import one_at_a_time
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import caches
from pollard.kernels.products import results, tiled
from pollard.kernels.products.derived import (
    ByColumns,
    Tiling,
    bounds,
    by_columns,
    calls,
    column_bits,
    places_in_runs,
    tiling,
)
from pollard.kernels.products.operand import Operand, Packing, name_of
from pollard.kernels.products.ordered import ordering
from pollard.kernels.products.product import Product
from pollard.kernels.products.tuning import Choice, near_batch
from pollard.kernels.products.workspace import workspace

# Uses of each row of a tile of the dense operand in a block of rows of W: at least, and where what rows leave between tiles still fits.
SELDOM, OFTEN = 16, 64

# Takes the tensors of the product, contiguous vectors and matrices of the layouts it was made for.
Call = Callable[..., Tensor]
# What a batch and the layouts of its matrices make of a kernel.
Fit = Callable[[tuple[Operand, ...], Panels], Call]


@one_at_a_time
def prepared(
    product: Product, matrices: tuple[Operand, ...], variant: tuple[Any, ...], take: Callable[[], tuple[Tensor, ...]]
) -> Call:
    """The call for `product` of such `matrices`; its kernel is chosen by running it on what `take` gives, if it never was.

    variant: of "gather", "matvec", "n_of_m", "skinny" and "bitmap", whether there is a bias, and the activation; of "sddmm", whether the gradient is
    features-first. Raises KernelError if a kernel does not compile.
    """
    # What is prepared serves all batches that are cut alike, so that there are few of them however many batches come.
    known = calls(product.topology).prepared

    def build(choice: Choice) -> Callable[[], Tensor]:
        call = _MAKERS[product.operation](product, choice, *variant)(matrices, product.panels(choice))
        tensors = take()
        return lambda: call(*tensors)

    operand = product.operand
    kind = (
        product.operation, operand.features_first, operand.dtype, product.values, variant, product.chains, product.threads,
        product.target.isa, product.rows, product.abreast,
    )  # fmt: skip
    choices, near = calls(product.topology).choices, (*kind, near_batch(product.batch, product.target))
    choice = choices.get(near)
    if choice is None:
        choice = choices[near] = product.decide(build).choice
    panels = product.panels(choice)
    key = (*kind, choice, panels.kind, product.in_steps)
    fit = known.get(key)
    if fit is None:
        fit = known[key] = _MAKERS[product.operation](product, choice, *variant)
    call: Call = fit(matrices, panels)
    return call


def _walk(
    topology: Topology, tiles: Tiling, chunks: int, *, longer: float = 0, step: int = 1
) -> dict[str, Tensor | int]:
    # What most kernels want to know of the topology. longer: row groups that a block may have, where that is more than it needs. step: what
    # their number is a multiple of.
    passes = _passes(topology.groups, chunks, max(_block(topology), min(longer, _block(topology, OFTEN))))
    return {
        "columns": topology.indices.columns, "bounds": bounds(topology, chunks * passes, step), "PASSES": passes, **_tiles(tiles)
    }  # fmt: skip


def _walk_by_columns(product: Product, turned: ByColumns, choice: Choice) -> dict[str, Tensor | int]:
    # Here grains come in one stream, from wherever it is. A block may be longer: until its sums, at rest between tiles, fill
    # half of L2. The dense operand is then fetched less often.
    topology, chunks = product.topology, product.threads
    resting = _rows_in_l2(2, 4 * product.unit * choice.vectors)
    passes = _passes(topology.shape[1], chunks, max(_block(topology), resting))
    return {
        "columns": turned.rows, "bounds": turned.bounds(chunks * passes, product.step), "PASSES": passes, **_tiles(turned.tiling)
    }  # fmt: skip


def _tiles(tiles: Tiling) -> dict[str, Tensor | int]:
    return {"tiles": tiles.pointers, "TILES": tiles.tiles, "STRIDE": tiles.stride, "END": tiles.end}


def _block(topology: Topology, uses: int = SELDOM) -> float:
    # A block of rows is so long that a tile of the dense operand, once in cache, is used about so many times a row of it, and so
    # short that its grains stay in cache for all panels.
    return uses / max(topology.density, 1e-6)


def _returning(topology: Topology, tiles: Tiling, row: int) -> float:
    # Row groups whose rows, of `row` bytes, fill a quarter of L2, where each tile comes back to them.
    return _rows_in_l2(4, row) / topology.pattern.rows if tiles.tiles > 1 else math.inf


def _rows_in_l2(part: int, row: int) -> float:
    # Rows of so many bytes that fill that part of L2.
    return caches().l2 // part / row


def _passes(groups: int, chunks: int, block: float) -> int:
    return max(1, math.ceil(groups / chunks / math.ceil(block)))


def _gather(product: Product, choice: Choice, bias: bool = False, activation: str = "") -> Fit:
    topology, threads = product.topology, product.threads
    out, width = topology.shape[::-1] if choice.transposed else topology.shape
    if choice.transposed:
        turned = by_columns(topology, product.width(choice))
        walk = _walk_by_columns(product, turned, choice)
        order = KernelSpec("order", product.target.isa, values=product.values, numbers=product.multiplied(choice))
        arrange = ordering(order, turned.permutation, threads)
    else:
        tiles = tiling(topology, product.width(choice))
        longer = _returning(topology, tiles, 4 * product.unit * choice.vectors)
        walk, arrange = _walk(topology, tiles, threads, longer=longer, step=product.step), None
    kind = product.panels(choice).kind
    packing = Packing(product.target, product.operand, kind, threads, purpose="operand") if choice.packed else None
    spec = product.spec(choice, bias=bias, activation=activation)
    # Rows of the longest run, whose sums rest between tiles.
    cuts = walk["bounds"]
    longest = int(cuts.diff().max()) * spec.rows if spec.rests and isinstance(cuts, Tensor) else 0
    launch = Launch(spec, threads, threads, **walk, IN=width, CHUNKS=threads, ROOM=longest)

    def fit(matrices: tuple[Operand, ...], panels: Panels) -> Call:
        operand = matrices[0]
        columns = panels.columns(product.unit)
        room, stride = results.matrix(operand.batch, out, operand.dtype, rows=product.rows)
        run = launch.at(
            panels.count * threads,
            LDX=operand.stride,
            LDY=stride,
            PANELS=panels.count,
            WIDE=panels.wide,
            LAST=panels.last,
            WIDTH=columns,
        )
        pack = packing.at(operand, panels) if packing else None
        resting = columns * threads * longest

        def call(x: Tensor, values: Tensor, offset: Tensor | None = None) -> Tensor:
            y = room(x)
            panelled, read = x if pack is None else pack(x), values if arrange is None else arrange(values)
            sums = workspace("sums", resting) if resting else None
            run(read.data_ptr(), panelled.data_ptr(), y.data_ptr(), address(offset), address(sums))
            return y

        return call

    return fit


def _matvec(product: Product, choice: Choice, bias: bool, activation: str) -> Fit:
    topology, threads, out = product.topology, product.threads, product.topology.shape[0]
    where: dict[str, Tensor | int] = {"pointers": topology.indices.row_pointers}
    if product.operation == "n_of_m":
        bits = places_in_runs(topology, N_OF_M_PAD)
        kept = topology.nnz // out
        where = {"bits": bits, "BYTES": (len(bits) - N_OF_M_PAD) // out, "KEPT": kept}
    launch = Launch(
        product.spec(choice, bias=bias, activation=activation), threads, threads, **where,
        columns=topology.indices.columns, bounds=bounds(topology, threads), PASSES=1,
    )  # fmt: skip

    def fit(matrices: tuple[Operand, ...], _: Panels) -> Call:
        run, room = launch.at(threads), results.matrix(1, out, matrices[0].dtype, rows=True)[0]
        # One sample is looked up a number at a time: it may as well be widened and side by side.
        ready = matrices[0].dtype == "float32" and matrices[0].stride == 1

        def call(x: Tensor, values: Tensor, offset: Tensor | None = None) -> Tensor:
            y, sample = room(x), x if ready else x.float().contiguous()
            run(values.data_ptr(), sample.data_ptr(), y.data_ptr(), address(offset))
            return y

        return call

    return fit


def _skinny(product: Product, choice: Choice, bias: bool, activation: str) -> Fit:
    topology, threads, (out, width) = product.topology, product.threads, product.topology.shape
    spec, tiles = product.spec(choice, bias=bias, activation=activation), tiling(topology, product.width(choice))
    launch = Launch(spec, threads, threads, **_walk(topology, tiles, threads), IN=width)

    def fit(matrices: tuple[Operand, ...], _: Panels) -> Call:
        operand = matrices[0]
        room, stride = results.matrix(operand.batch, out, operand.dtype, rows=product.rows)
        run, abreast = launch.at(threads, LDX=operand.stride, LDY=stride), width_of(operand.batch)
        there = operand.features_first and operand.dtype == "float32" and operand.batch == operand.stride == abreast

        def call(x: Tensor, values: Tensor, offset: Tensor | None = None) -> Tensor:
            y, laid = room(x), None if there else workspace("operand", width * abreast)
            sums = workspace("sums", out * abreast) if spec.tiled else None
            run(values.data_ptr(), x.data_ptr(), address(laid), y.data_ptr(), address(offset), address(sums))
            return y

        return call

    return fit


def _bitmap(product: Product, choice: Choice, bias: bool, activation: str) -> Fit:
    topology, threads, (out, width) = product.topology, product.threads, product.topology.shape
    spec, words = product.spec(choice, bias=bias, activation=activation), -(-width // WORD)
    launch = Launch(
        spec, threads, threads, pointers=topology.indices.row_pointers, bits=column_bits(topology, WORD),
        bounds=bounds(topology, threads, rows_abreast(spec)), PASSES=1, WORDS=words, WHOLE=width // WORD, LIMIT=topology.nnz - vector_of(spec), BLANK=0,
    )  # fmt: skip

    def fit(matrices: tuple[Operand, ...], _: Panels) -> Call:
        operand = matrices[0]
        room, stride = results.matrix(operand.batch, out, operand.dtype, rows=product.rows)
        # Samples are read a vector of features at a time, as they are, or one that is widened.
        side_by_side = operand.stride == 1 if operand.batch == 1 else not operand.features_first
        read = torch.bfloat16 if spec.pairs else torch.float32
        ready = side_by_side and operand.dtype == name_of(read)
        run = launch.at(threads, LDX=operand.stride if ready else width, LDY=stride)

        def call(x: Tensor, values: Tensor, offset: Tensor | None = None) -> Tensor:
            y, samples = room(x), x if ready else x.to(read).contiguous()
            run(values.data_ptr(), samples.data_ptr(), y.data_ptr(), address(offset))
            return y

        return call

    return fit


def _scatter(product: Product, choice: Choice) -> Fit:
    # The transpose of an unstructured W can be gathered like W itself: no stores, for 6 bytes more a kept weight, and 4 of
    # workspace. Both add in the order of rows, so both give the same bits.
    if choice.transposed:
        return (tiled.gather if product.operation == "amx_scatter" else _gather)(product, choice)
    width, threads = product.topology.shape[1], product.threads
    packing = Packing(product.target, product.operand, product.panels(choice).kind, threads, purpose="operand")
    tiles = tiling(product.topology, choice.width or product.topology.width)
    chunks = min(threads, tiles.tiles)
    cuts = equal_runs(tiles.tiles, chunks)
    launch = Launch(
        product.spec(choice), chunks, threads, **_walk(product.topology, tiles, 1), cuts=cuts,
        GROUPS=product.topology.groups, IN=width, WIDTH=tiles.width * product.topology.pattern.columns, CHUNKS=chunks,
    )  # fmt: skip

    def fit(matrices: tuple[Operand, ...], panels: Panels) -> Call:
        grad = matrices[0]
        pack, size = packing.at(grad, panels), width * panels.columns(product.unit)
        # Sums that become rows are read a unit of features at a time, to beyond the last one.
        size += product.rows * product.unit * product.unit * (panels.vectors + 1)
        room, stride = results.matrix(grad.batch, width, grad.dtype, rows=product.rows)
        run = launch.at(panels.count * chunks, LDY=stride, PANELS=panels.count, WIDE=panels.wide, LAST=panels.last)

        def call(grad: Tensor, values: Tensor) -> Tensor:
            dx, panelled, sums = room(grad), pack(grad), workspace("sums", size)
            run(values.data_ptr(), panelled.data_ptr(), dx.data_ptr(), sums.data_ptr())
            return dx

        return call

    return fit


def _sddmm(product: Product, choice: Choice, upstream_first: bool) -> Fit:
    topology, target, threads, unit = product.topology, product.target, product.threads, product.unit
    # Of the gradient only its layout counts here.
    upstream = Operand(product.batch, topology.shape[0], upstream_first, 0, product.operand.dtype)
    packings = [
        None if each.features_first else Packing(target, each, (1, False, False), threads, purpose=purpose)
        for each, purpose in ((upstream, "upstream"), (product.operand, "operand"))
    ]
    spec, tiles = product.spec(choice), tiling(topology, choice.width or topology.width)
    longer = _returning(topology, tiles, product.numbers.bytes * min(product.batch, BATCH_STEP))
    launch = Launch(spec, threads, threads, **_walk(topology, tiles, threads, longer=longer))

    def fit(matrices: tuple[Operand, ...], _: Panels) -> Call:
        batch = matrices[0].batch
        whole = Panels.cut(batch, unit, batch)
        turns = [packing.at(each, whole) if packing else None for each, packing in zip(matrices, packings, strict=True)]
        strides = [
            each.stride if turn is None else whole.columns(unit) for each, turn in zip(matrices, turns, strict=True)
        ]
        run = launch.at(threads, BATCH=batch, LDY=strides[0], LDX=strides[1])
        (turn_grad, turn_x), room = turns, results.room((topology.nnz,), (1,), getattr(torch, spec.values))
        wanted = None if spec.values == product.values else getattr(torch, product.values)

        def call(grad: Tensor, x: Tensor) -> Tensor:
            dw = room(grad)
            turned, turned_grad = turn_x(x) if turn_x else x, turn_grad(grad) if turn_grad else grad
            run(dw.data_ptr(), turned.data_ptr(), turned_grad.data_ptr())
            return dw if wanted is None else dw.to(wanted)

        return call

    return fit


_MAKERS: dict[str, Callable[..., Fit]] = {
    "gather": _gather, "amx_gather": tiled.gather, "matvec": _matvec, "n_of_m": _matvec, "skinny": _skinny, "bitmap": _bitmap, "scatter": _scatter, "amx_scatter": _scatter, "sddmm": _sddmm, "amx_sddmm": _sddmm
}  # fmt: skip


__all__ = ["Call", "prepared"]
