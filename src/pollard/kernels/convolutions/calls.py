"""The three products of a convolution, each prepared once for images of some sizes and strides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target
from pollard.kernels.convolutions.passes import BLOCK, Pass, fitting, tile_width, together, useful
from pollard.kernels.convolutions.plan import Dots, Field
from pollard.kernels.convolutions.scattered import Layout, Scatter
from pollard.kernels.convolutions.tuned import Call, Tuned
from pollard.kernels.convolutions.turned import turned
from pollard.kernels.convolutions.window import Sizes, Window, still
from pollard.kernels.products.derived import tiling
from pollard.kernels.products.operand import name_of
from pollard.kernels.products.ordered import ordering
from pollard.kernels.products.workspace import workspace

# Runs of samples whose dot products are summed apart: a number of its own, so that no bit depends on the number of threads.
SLICES = 4
DOTS, GRAINS = 8, 4  # dot products at a time: enough additions under way, and enough grains that share the loads of dY
RUN = 2  # as many at least are a row's in a tile of columns


@dataclass(frozen=True)
class Convolution:
    """W, of a topology of channels and taps, moved over images through a window, on `threads` of torch's."""

    topology: Topology
    window: Window
    target: Target
    threads: int

    def forward(self, x: Tensor, values: Tensor, bias: Tensor | None, *, activation: str | None = None) -> Call:
        """What makes y `(samples, out, rows, columns)`, contiguous, of an x like this one, values and, if there is one, a bias."""
        return self.over(x, values.dtype, bias=bias is not None, activation=activation or "").best((x, values, bias))

    def over(self, x: Tensor, values: torch.dtype, *, bias: bool = False, activation: str = "") -> Pass:
        """The pass over x that makes y, with values of that dtype."""
        spec = replace(self._spec("convolve", x), values=name_of(values), bias=bias, activation=activation)
        return Pass(spec, self.topology, self.window.forward(_sizes(x)), x, self.target, self.threads)

    def input_grad(self, grad: Tensor, values: Tensor, sizes: Sizes) -> Call:
        """What makes the gradient in x, whose images are of `sizes`, of a gradient like this one and values."""
        back, permutation = self.back_over(grad, values.dtype, sizes)
        if permutation is None:
            return back.best((grad, values))
        spec = KernelSpec("order", self.target.isa, values=name_of(values.dtype))
        arrange = ordering(spec, permutation, self.threads)
        run = back.best((grad, arrange(values)))
        return lambda grad, values: run(grad, arrange(values))

    def back_over(self, grad: Tensor, values: torch.dtype, sizes: Sizes) -> tuple[Tuned, Tensor | None]:
        """What makes that in x of a gradient and values of that dtype; where each value that it takes stands in the topology's order, if elsewhere.

        The rows of a block share the sums that they are scattered to. One or two would load and store them for little: they gather.
        """
        pattern = self.topology.pattern
        if pattern.rows >= BLOCK and pattern.columns == 1:
            layout = Layout.of(self.topology, self.window, sizes, len(grad), self.target)
            if layout is not None:
                spec = replace(
                    self._spec("transposed", grad),
                    index=layout.topology.indices.columns.itemsize,
                    values=name_of(values) if layout.permutation is None else "float32",
                )
                return Scatter(spec, layout, grad, sizes, self.target, self.threads), layout.permutation
        axes = self.window.backward(sizes)
        found = turned(self.topology, axes)
        index = found.topology.indices.columns.itemsize
        spec = replace(self._spec("convolve", grad), rows=1, columns=1, block=1, index=index)
        return Pass(spec, found.topology, axes, grad, self.target, self.threads), found.permutation

    def value_grad(self, grad: Tensor, x: Tensor) -> Call:
        """What makes the gradient in values, float32, of a gradient and an x like these."""
        topology, samples, lanes = self.topology, x.shape[0], self.target.lanes
        axes = self.window.forward(_sizes(x))
        # Not tuned: it says in which order they are added.
        abreast = together(axes, samples, lanes)
        field = fitting(Field(*axes, x.shape[1], abreast, lanes))
        rows, columns = map(still, _sizes(grad))
        upstream = fitting(Field(rows, columns, topology.shape[0], abreast, lanes))
        dots = Dots(field, upstream)
        made = self._spec("correlate", x)
        spec = replace(
            made, abreast=abreast, reach=dots.reach(), dots=max(made.block, min(max(DOTS, GRAINS * made.block), lanes))
        )
        groups, table = -(-samples // abreast), dots.table()
        # Where rows share what they load, shorter runs of columns cost more than they save.
        width = tile_width(topology, 4 * field.plane, x.shape[1], RUN * spec.dots) if spec.block == 1 else 0
        tiles = tiling(topology, width or topology.width)
        slices = min(SLICES, groups)
        threads = useful(self.threads, topology.nnz * samples * grad.shape[2] * grad.shape[3] // lanes)
        parts = max(1, min(-(-threads // slices), topology.groups))
        units = slices * parts
        # Whole vectors along rows, already numbers to add: read where they lie.
        lie = abreast == 1 and made.numbers == "float32" and upstream.pitch == grad.shape[3]
        there = upstream.arguments("dy", grad.stride()) | ({"DY_SLABS": 0, "DY_PLANE": grad.stride(1)} if lie else {})
        launch = Launch(
            spec, units, threads, PARTS=parts,
            columns=topology.indices.columns, tiles=tiles.pointers, TILES=tiles.tiles, STRIDE=tiles.stride, END=tiles.end,
            offsets=field.offsets(), patches=table, bounds=equal_runs(groups, slices), **field.arguments("x", x.stride()), **there,
            PASSES=1, PATCHES=len(table), SAMPLES=samples, GROUPS=topology.groups, VALUES=topology.nnz,
        ).at(units)  # fmt: skip
        nnz = topology.nnz

        def call(grad: Tensor, x: Tensor) -> Tensor:
            parts = torch.empty((slices, nnz), dtype=torch.float32, device="cpu")
            fields = workspace("field", field.size * units), workspace("upstream", 0 if lie else upstream.size * units)
            launch(parts.data_ptr(), x.data_ptr(), grad.data_ptr(), *(each.data_ptr() for each in fields))
            total = parts[0].clone()
            for part in parts[1:]:
                total += part
            return total

        return call

    def _spec(self, operation: str, images: Tensor) -> KernelSpec:
        pattern = self.topology.pattern
        return KernelSpec(
            operation, self.target.isa, rows=pattern.rows, columns=pattern.columns, block=min(pattern.rows, BLOCK),
            numbers=name_of(images.dtype), index=self.topology.indices.columns.itemsize,
        )  # fmt: skip


def _sizes(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


__all__ = ["Convolution"]
