"""The gradient in the input by grains of several rows: patches of the gradient of y, held in registers, are scattered to channels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.kernels.code.launch import Launch, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target
from pollard.kernels.convolutions.passes import BLOCK, cut, fitting, tile_width, together, useful
from pollard.kernels.convolutions.plan import Field, Patches
from pollard.kernels.convolutions.tuned import Call, Tuned
from pollard.kernels.convolutions.turned import by_shift
from pollard.kernels.convolutions.window import Sizes, Window, still
from pollard.kernels.products import results
from pollard.kernels.products.derived import tiling
from pollard.kernels.products.tuning import Choice, near_batch
from pollard.kernels.products.workspace import workspace

LEAST = 256  # products of a row group with a patch, for each of its rows: where there are fewer, to begin takes longer than to gather


class Layout(NamedTuple):
    """What lies where. It is not tuned: patches say in which order a gradient is added up.

    Vectors are of samples, or lie along rows. Along rows, a shift belongs to what is read, so that sums lie in whole vectors: a
    store that straddled two would hold up the loads after it. `topology` is then W by shift.
    permutation: where its values stand in W. patches: of `dy`, and of the field of dX, which is theirs. starts: int32, where each
    row group of `topology` begins in `dy` for the first patch.
    """

    topology: Topology
    permutation: Tensor | None
    patches: Patches
    dy: Field
    starts: Tensor

    @classmethod
    def of(cls, topology: Topology, window: Window, sizes: Sizes, samples: int, target: Target) -> Self | None:
        """For images of `sizes`; None where a row group keeps so little that a patch costs more than it saves."""
        rows, columns = window.forward(sizes)
        inner, outer = (still(axis.places) for axis in (rows, columns))
        abreast = together((rows, columns), samples, target.lanes)
        shifts: tuple[int, ...] = (0,)
        if abreast == 1:
            columns, outer = still(sizes[1]), window.backward(sizes)[1]
            shifts = outer.taps
        # Half of the registers hold a patch of each row of a block, the others sums and values.
        field = Field(rows, columns, topology.shape[1] // window.taps, abreast, target.lanes)
        patches = Patches.best(field, topology.groups * len(shifts), max(1, target.registers // (2 * BLOCK)))
        if topology.grains * patches.vectors * target.lanes < LEAST * patches.groups:
            return None
        permutation = None
        if len(shifts) > 1:
            topology, permutation = by_shift(topology, window.kernel)
        pieces = patches.down, patches.along * (target.lanes if abreast == 1 else 1)
        rows, columns, inner, outer = (
            axis.filled(piece) for axis, piece in zip((rows, columns, inner, outer), 2 * pieces, strict=True)
        )
        dy = fitting(replace(field, rows=inner, columns=outer, channels=topology.shape[0] // len(shifts)))
        starts = np.arange(0, dy.channels, topology.pattern.rows)[:, None] * dy.plane + np.array(shifts)
        patches = replace(patches, field=fitting(replace(field, rows=rows, columns=columns)), width=dy.pitch)
        return cls(topology, permutation, patches, dy, torch.from_numpy(starts.reshape(-1).astype(np.int32)))


@dataclass(frozen=True)
class Scatter(Tuned):
    """What `spec` and `layout` leave open, over gradients of y like `grad`, for images of `sizes`.

    A choice says how many columns of the topology of the layout a tile has (0: all).
    """

    spec: KernelSpec
    layout: Layout
    grad: Tensor
    sizes: Sizes
    target: Target
    threads: int

    @property
    def topology(self) -> Topology:  # type: ignore[override]
        """Whose grains are walked."""
        return self.layout.topology

    def options(self) -> list[Choice]:
        """Choices worth measuring, the best guess first."""
        patches = self.layout.patches
        width = tile_width(self.topology, patches.window, patches.field.channels)
        return [Choice(patches.vectors, each) for each in dict.fromkeys((width, 0))]

    def spec_of(self, choice: Choice) -> KernelSpec:
        """The kernel for that choice."""
        patches = self.layout.patches
        tiled = bool(choice.width) and choice.width < self.topology.width
        return replace(self.spec, abreast=patches.field.abreast, reach=patches.reach(), tiled=tiled)

    def describe(self, choice: Choice) -> str:
        """In words, for people."""
        patches, spec = self.layout.patches, self.spec
        lanes = f"{patches.field.abreast} samples abreast" if patches.field.abreast > 1 else "along rows"
        channels = f"tiles of {choice.width // self._per} channels" if choice.width else "one tile"
        return (
            f"transposed.{spec.isa}.v{spec.rows}.b{spec.block}, "
            f"patches of {patches.down} x {patches.along} vectors {lanes}, {channels}"
        )

    def call(self, choice: Choice) -> Call:
        """The call by that choice."""
        topology, (patches, dy) = self.topology, self.layout[2:4]
        dx, per = patches.field, self._per
        samples, size = len(self.grad), math.prod(self.sizes)
        strides = (dx.channels * size, size, self.sizes[1], 1)
        threads = useful(self.threads, self.work // dx.lanes)
        groups = -(-samples // dx.abreast)
        cuts, parts = cut(threads, groups, dx.channels)
        # A part takes tiles: no two add to the same channel.
        width = min(choice.width or topology.width, -(-dx.channels // parts) * per)
        tiles, units, table = tiling(topology, width), cuts * parts, patches.table()
        launch = Launch(
            self.spec_of(Choice(patches.vectors, width)), units, threads, PARTS=parts,
            columns=topology.indices.columns, tiles=tiles.pointers, TILES=tiles.tiles, STRIDE=tiles.stride, END=tiles.end,
            starts=self.layout.starts, offsets=dx.offsets(), patches=table, bounds=equal_runs(groups, cuts),
            **dy.arguments("dy", self.grad.stride()), **dx.arguments("dx", strides, parts),
            PASSES=1, PATCHES=len(table), SAMPLES=samples, WIDTH=width // per,
        ).at(units)  # fmt: skip
        result = results.room((samples, dx.channels, *self.sizes), strides, self.grad.dtype)

        def call(grad: Tensor, values: Tensor) -> Tensor:
            gradient = result(grad)
            fields = workspace("upstream", dy.size * units), workspace("field", dx.size * units)
            launch(values.data_ptr(), grad.data_ptr(), gradient.data_ptr(), *(each.data_ptr() for each in fields))
            return gradient

        return call

    @property
    def work(self) -> int:
        """Multiply-adds, about."""
        return self.topology.nnz * self.grad.shape[0] * math.prod(self.grad.shape[2:])

    @property
    def key(self) -> str:
        """The kind of problem that a decision is remembered for."""
        topology, spec, (samples, *sizes) = self.topology, self.spec, self.grad.shape
        density = round(4 * math.log2(max(topology.density, 1e-9)))
        looks = [
            (axis.shift, axis.extent, axis.step, axis.taps)
            for field in (self.layout.patches.field, self.layout.dy)
            for axis in (field.rows, field.columns)
        ]
        return (
            f"convolution {self.target.isa} scattered {topology.pattern} {topology.shape} images {sizes} {looks} batch "
            f"{near_batch(samples, self.target)} density 2^{density / 4} {spec.numbers} by {spec.values} threads {self.threads}"
        )

    @property
    def _per(self) -> int:
        return self.topology.shape[1] // self.layout.patches.field.channels


__all__ = ["Layout", "Scatter"]
