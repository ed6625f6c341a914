"""Products of W, or of its transpose, in the tiles of AMX, prepared."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pollard.kernels.code.emit.amx import DEEP, TILE
from pollard.kernels.code.emit.amx_gather import groups_at_once
from pollard.kernels.code.emit.panels import Panels
from pollard.kernels.code.launch import Launch, address
from pollard.kernels.code.target import caches
from pollard.kernels.products.derived import bounds, by_columns
from pollard.kernels.products.operand import Operand, Packing
from pollard.kernels.products.product import Product
from pollard.kernels.products.results import matrix
from pollard.kernels.products.tuning import Choice
from pollard.kernels.products.workspace import workspace


def gather(
    product: Product, choice: Choice, bias: bool = False, activation: str = ""
) -> Callable[[tuple[Operand, ...], Panels], Callable[..., Tensor]]:
    """What a batch and its layout make of the kernel for `choice`."""
    topology, threads = product.topology, product.threads
    out, width = topology.shape[::-1] if choice.transposed else topology.shape
    spec = product.spec(choice, bias=bias, activation=activation)
    pointers, walk = (_by_columns if choice.transposed else _by_rows)(product)
    kind = product.panels(choice).kind
    packing = Packing(product.target, product.operand, kind, threads, purpose="operand") if choice.packed else None
    longest = -(-int(pointers.diff().max()) * topology.pattern.columns // DEEP)
    launch = Launch(
        spec, threads, threads, pointers=pointers, IN=width, ROOM=longest, GRAINS=topology.grains, **walk,
    )  # fmt: skip

    def fit(matrices: tuple[Operand, ...], panels: Panels) -> Callable[..., Tensor]:
        operand = matrices[0]
        # As much of the operand as half of L2 holds is gathered by all rows before the next.
        span = max(1, caches().l2 // (2 * width * product.numbers.bytes * product.unit * choice.vectors))
        room, stride = matrix(operand.batch, out, operand.dtype, rows=product.rows)
        run = launch.at(
            threads, PASSES=-(-panels.count // span), SPAN=span, LDX=operand.stride, LDY=stride,
            PANELS=panels.count, WIDE=panels.wide, LAST=panels.last,
        )  # fmt: skip
        pack = packing.at(operand, panels) if packing else None
        size = threads * groups_at_once(spec) * longest * TILE // 4

        def call(x: Tensor, values: Tensor, offset: Tensor | None = None) -> Tensor:
            y, panelled, laid = room(x), x if pack is None else pack(x), workspace("values", size)
            run(values.data_ptr(), panelled.data_ptr(), y.data_ptr(), address(offset), laid.data_ptr())
            return y

        return call

    return fit


def _by_rows(product: Product) -> tuple[Tensor, dict[str, Tensor | int]]:
    indices = product.topology.indices
    cuts = bounds(product.topology, product.threads, product.step)
    return indices.row_pointers, {"columns": indices.columns, "bounds": cuts, "permutation": 0}


def _by_columns(product: Product) -> tuple[Tensor, dict[str, Tensor | int]]:
    turned = by_columns(product.topology, product.topology.groups)
    walk: dict[str, Tensor | int] = {
        "columns": turned.rows, "bounds": turned.bounds(product.threads, product.step), "permutation": turned.permutation
    }  # fmt: skip
    return turned.tiling.pointers, walk


__all__ = ["gather"]
