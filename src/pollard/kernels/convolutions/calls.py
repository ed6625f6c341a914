"""The three products of a convolution, each prepared once for images of some sizes and strides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pollard.errors import KernelError
from pollard.formats.topology import Topology
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target, caches
from pollard.kernels.convolutions.plan import Dots, Field, Patches
from pollard.kernels.convolutions.turned import turned
from pollard.kernels.convolutions.window import Axis, Window
from pollard.kernels.products import results
from pollard.kernels.products.derived import tiling
from pollard.kernels.products.operand import name_of
from pollard.kernels.products.workspace import workspace

Call = Callable[..., Tensor]
# Runs of samples whose dot products are summed apart: a number of its own, so that no bit depends on the number of threads.
SLICES = 4
MOST = 1 << 31  # numbers of a field, in which a place is 32 bits
BLOCK = 4  # rows of a grain that are worked on at a time
DOTS = 8  # dot products at a time: enough additions under way
RUN = 8  # grains of a row in a tile, below which its beginning and end cost more than it saves
SPARE = 3  # registers beside the sums of single rows, which are multiplied straight from memory: for values


@dataclass(frozen=True)
class Convolution:
    """W, of a topology of channels and taps, moved over images through a window, on `threads` of torch's."""

    topology: Topology
    window: Window
    target: Target
    threads: int

    def forward(self, x: Tensor, values: Tensor, *, bias: bool, relu: bool) -> Call:
        """What makes y `(samples, out, rows, columns)`, contiguous, of an x like this one, values and, if there is one, a bias."""
        topology = self.topology
        field = self._field(self.window.forward(_sizes(x)), x)
        spec = replace(self._spec("convolve", field, x), values=name_of(values.dtype), bias=bias, relu=relu)
        patches = Patches.best(field, topology.groups, self._most(spec.block))
        return self._convolve(spec, patches, topology, x, topology.shape[0])

    def input_grad(self, grad: Tensor, values: Tensor, sizes: tuple[int, int]) -> Call:
        """What makes the gradient in x, whose images are of `sizes`, of a gradient like this one and values."""
        axes, channels = self.window.backward(sizes), self.topology.shape[1] // self.window.taps
        field, found = self._field(axes, grad), turned(self.topology, axes)
        index = found.topology.indices.columns.itemsize
        spec = replace(self._spec("convolve", field, grad), rows=1, columns=1, block=1, index=index)
        patches = Patches.best(field, channels, self._most(1))
        run = self._convolve(spec, patches, found.topology, grad, channels)
        arrange = self._ordering(found.permutation, values)
        return lambda grad, values: run(grad, arrange(values))

    def value_grad(self, grad: Tensor, x: Tensor) -> Call:
        """What makes the gradient in values, float32, of a gradient and an x like these."""
        topology, samples = self.topology, x.shape[0]
        field = self._field(self.window.forward(_sizes(x)), x)
        still = [Axis(out, 0, out, 1, (0,), (0,), (out,)) for out in _sizes(grad)]
        upstream = Field(still[0], still[1], topology.shape[0], field.abreast, self.target.lanes)
        dots = Dots(field, upstream)
        spec = self._spec("correlate", field, x)
        spec = replace(spec, reach=dots.reach(), dots=max(spec.block, min(DOTS, self.target.lanes)))
        groups, table = -(-samples // field.abreast), dots.table()
        slices = min(SLICES, groups)
        launch = Launch(
            spec, slices, self.threads,
            columns=topology.indices.columns, pointers=topology.indices.row_pointers, offsets=field.offsets(), tiles=table,
            bounds=_runs(groups, slices), **field.arguments("x", x.stride()), **upstream.arguments("dy", grad.stride()),
            PASSES=1, TILES=len(table), SAMPLES=samples, GROUPS=topology.groups, VALUES=topology.nnz,
        ).at(slices)  # fmt: skip
        nnz = topology.nnz

        def call(grad: Tensor, x: Tensor) -> Tensor:
            parts = torch.empty((slices, nnz), dtype=torch.float32, device="cpu")
            fields = workspace("field", field.size * slices), workspace("upstream", upstream.size * slices)
            launch(parts.data_ptr(), x.data_ptr(), grad.data_ptr(), *(each.data_ptr() for each in fields))
            total = parts[0].clone()
            for part in parts[1:]:
                total += part
            return total

        return call

    def _field(self, axes: tuple[Axis, Axis], images: Tensor) -> Field:
        samples, channels = images.shape[:2]
        lanes = self.target.lanes
        return _fitting(Field(*axes, channels, abreast(axes, samples, lanes), lanes))

    def _spec(self, operation: str, field: Field, images: Tensor) -> KernelSpec:
        pattern = self.topology.pattern
        return KernelSpec(
            operation, self.target.isa, rows=pattern.rows, columns=pattern.columns, block=min(pattern.rows, BLOCK),
            numbers=name_of(images.dtype), abreast=field.abreast, index=self.topology.indices.columns.itemsize,
        )  # fmt: skip

    def _most(self, block: int) -> int:
        """Vectors of a tile: for each a sum for each row of the block, which share it, and there is a value."""
        registers = self.target.registers
        return registers - SPARE if block == 1 else (registers - 1) // (block + 1)

    def _convolve(self, spec: KernelSpec, patches: Patches, topology: Topology, images: Tensor, channels: int) -> Call:
        field, samples = patches.field, images.shape[0]
        height, width = field.rows.places, field.columns.places
        groups = -(-samples // field.abreast)
        units = min(self.threads, groups)
        table, alone = patches.table(), field.abreast == 1
        phases = len(field.rows.counts) * len(field.columns.counts)
        strides = (channels * height * width, height * width, width, 1)
        tiles = tiling(topology, self._width(spec, patches, topology))
        resting = channels * patches.vectors * field.lanes if tiles.tiles > 1 else 0
        room = resting if alone else phases * channels * patches.plane
        launch = Launch(
            replace(spec, reach=patches.reach(), tiled=tiles.tiles > 1), units, self.threads,
            columns=topology.indices.columns, tiles=tiles.pointers, TILES=tiles.tiles, STRIDE=tiles.stride, END=tiles.end,
            offsets=field.offsets(), patches=table, bounds=_runs(groups, units), ends=0 if alone else patches.ends(),
            **field.arguments("x", images.stride()), PASSES=1, PATCHES=len(table), SAMPLES=samples, Y_SAMPLE=strides[0],
            Y_CHANNEL=strides[1], Y_CHANNELS=channels, Y_PIXELS=strides[1], Y_PLANE=patches.plane, ROOM=room,
        ).at(units)  # fmt: skip
        result = results.room((samples, channels, height, width), strides, images.dtype)

        def call(x: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
            y, fields = result(x), workspace("field", field.size * units)
            rooms = workspace("room", room * units) if room else None
            launch(values.data_ptr(), x.data_ptr(), y.data_ptr(), _address(bias), fields.data_ptr(), _address(rooms))
            return y

        return call

    def _width(self, spec: KernelSpec, patches: Patches, topology: Topology) -> int:
        """Columns of grains of a tile: so many channels that what a patch reads of them stays in L1, and a row has some grains there."""
        taps = self.window.taps
        held = caches().l1 * 7 // 8 // patches.window * taps // spec.columns
        filled = math.ceil(RUN / max(topology.density, 1e-9))
        return max(held, filled, 1)

    def _ordering(self, permutation: Tensor, values: Tensor) -> Callable[[Tensor], Tensor]:
        count, threads = self.topology.nnz, self.threads
        spec = KernelSpec("order", self.target.isa, values=name_of(values.dtype))
        launch = Launch(
            spec, threads, threads, permutation=permutation, bounds=_runs(count, threads), PASSES=1
        ).at(threads)  # fmt: skip

        def arrange(values: Tensor) -> Tensor:
            ordered = workspace("values", count)
            launch(values.data_ptr(), ordered.data_ptr())
            return ordered

        return arrange


def abreast(axes: tuple[Axis, Axis], samples: int, lanes: int) -> int:
    """How many samples lie side by side in a field: one where a row of the result fills a vector, and no pixel is passed over."""
    rows, columns = axes
    if columns.step == len(columns.counts) == len(rows.counts) == 1 and columns.counts[0] >= lanes:
        return 1
    pixels = min(filter(None, rows.counts)) * min(filter(None, columns.counts))
    return lanes * max(1, min(8 // pixels, 4, samples // lanes))


def _fitting(field: Field) -> Field:
    pixels = max(field.rows.extent, field.rows.places) * max(field.columns.extent, field.columns.places) * field.abreast
    if field.channels * max(field.plane, pixels) < MOST:
        return field
    raise KernelError(
        f"images of {field.channels} channels, {field.rows.size} x {field.columns.size}",
        f"channels that take less than {MOST} numbers with their zeros around",
        "Cut the images into parts.",
    )


def _runs(count: int, parts: int) -> Tensor:
    return torch.tensor(equal_runs(count, parts), dtype=torch.int32, device="cpu")


def _sizes(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


__all__ = ["Call", "Convolution", "abreast"]
