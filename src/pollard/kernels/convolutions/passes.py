"""A pass over images that gathers shifted channels: the forward product, and the gradient in the input, of W turned."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from pollard.errors import KernelError
from pollard.formats.topology import Topology
from pollard.kernels.code.launch import Launch, address, equal_runs
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import Target, caches
from pollard.kernels.convolutions.plan import Field, Patches, joined
from pollard.kernels.convolutions.tuned import Call, Tuned
from pollard.kernels.convolutions.window import Axis
from pollard.kernels.products import results
from pollard.kernels.products.derived import tiling
from pollard.kernels.products.product import SHARE
from pollard.kernels.products.tuning import Choice, near_batch
from pollard.kernels.products.workspace import workspace

Axes = tuple[Axis, Axis]
MOST = 1 << 31  # numbers of a field, in which a place is 32 bits
BLOCK = 4  # rows of a grain that are worked on at a time
RUN = 8  # grains of a row in a tile, below which its beginning and end cost more than it saves
CHAINS = 8  # sums under way at once, enough for additions to follow one another without a pause
SPARE = 3  # registers beside the sums of single rows, which are multiplied straight from memory: for values


@dataclass(frozen=True)
class Pass(Tuned):
    """What `spec` leaves open: `topology`, whose columns are channels x taps, over `images` such as these.

    A choice says of how many `vectors` a patch is at most, how many columns of grains a tile has (0: all), and whether samples lie
    abreast, which is its `packed`. Every choice adds in the same order.
    """

    spec: KernelSpec
    topology: Topology
    axes: Axes
    images: Tensor
    target: Target
    threads: int

    def describe(self, choice: Choice) -> str:
        """In words, for people."""
        patches, spec = self._patches(choice), self.spec
        per, shape = self.images.shape[1], f"{patches.down} x {patches.along}"
        channels = (
            f"tiles of {choice.width * spec.columns * per // self.topology.shape[1]} channels"
            if choice.width
            else "one tile"
        )
        lanes = f"{patches.field.abreast} samples abreast" if choice.packed else "along rows"
        grain = f"v{spec.rows}" if spec.columns == 1 else f"b{spec.rows}x{spec.columns}"
        return f"convolve.{spec.isa}.{grain}.b{spec.block}, patches of {shape} vectors {lanes}, {channels}"

    def spec_of(self, choice: Choice) -> KernelSpec:
        """The kernel for that choice."""
        patches = self._patches(choice)
        tiled = bool(choice.width) and choice.width < self.topology.width
        return replace(self.spec, abreast=patches.field.abreast, reach=patches.reach(), tiled=tiled)

    def call(self, choice: Choice) -> Call:
        """The call by that choice."""
        topology, images, patches = self.topology, self.images, self._patches(choice)
        field, channels = patches.field, topology.shape[0] // self._phases
        samples, height, width = images.shape[0], *(axis.places for axis in self.axes)
        groups, alone = -(-samples // field.abreast), field.abreast == 1
        table, ends = patches.table(), None if alone else patches.ends()
        threads = useful(self.threads, self.work // field.lanes)
        cuts, parts = cut(threads, groups, patches.groups)
        units = cuts * parts
        strides = (channels * height * width, height * width, width, 1)
        tiles = tiling(topology, choice.width or topology.width)
        resting = channels * patches.vectors * field.lanes if tiles.tiles > 1 else 0
        room = resting if alone else self._phases * channels * patches.plane
        slabs = channels // self.spec.rows, self.spec.rows, height * width
        if ends is not None and parts == 1 and height * width < field.lanes:
            slabs, ends = (1, 1, channels * height * width), joined(ends, channels, patches.plane)
        launch = Launch(
            self.spec_of(choice), units, threads, PARTS=parts,
            columns=topology.indices.columns, tiles=tiles.pointers, TILES=tiles.tiles, STRIDE=tiles.stride, END=tiles.end,
            offsets=field.offsets(), patches=table, bounds=equal_runs(groups, cuts), ends=0 if ends is None else ends,
            **field.arguments("x", images.stride()), PASSES=1, PATCHES=len(table), SAMPLES=samples, Y_SAMPLE=strides[0],
            Y_CHANNEL=strides[1], Y_GROUPS=slabs[0], Y_SLABS=slabs[1], Y_PIXELS=slabs[2], Y_PLANE=patches.plane, ROOM=room,
        ).at(units)  # fmt: skip
        result = results.room((samples, channels, height, width), strides, images.dtype)

        def call(x: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
            y, fields = result(x), workspace("field", field.size * units)
            rooms = workspace("room", room * units) if room else None
            launch(values.data_ptr(), x.data_ptr(), y.data_ptr(), address(bias), fields.data_ptr(), address(rooms))
            return y

        return call

    @property
    def work(self) -> int:
        """Multiply-adds, about."""
        return self.topology.nnz * self.images.shape[0] * math.prod(axis.places for axis in self.axes) // self._phases

    @property
    def _phases(self) -> int:
        return math.prod(len(axis.counts) for axis in self.axes)

    @property
    def key(self) -> str:
        """The kind of problem that a decision is remembered for."""
        topology, spec, (samples, *sizes) = self.topology, self.spec, self.images.shape
        density = round(4 * math.log2(max(topology.density, 1e-9)))
        looks = [(axis.shift, axis.extent, axis.step, axis.taps, axis.counts) for axis in self.axes]
        return (
            f"convolution {self.target.isa} {topology.pattern} {topology.shape} images {sizes} {looks} batch "
            f"{near_batch(samples, self.target)} density 2^{density / 4} {spec.numbers} by {spec.values} threads {self.threads}"
        )

    def options(self) -> list[Choice]:
        """Choices worth measuring, the best guess first."""
        samples, registers, lanes, block = (
            self.images.shape[0],
            self.target.registers,
            self.target.lanes,
            self.spec.block,
        )
        # For each vector a sum for each row of the block, which share it; and there is a value. A wider patch leaves room for fewer channels.
        most = min(2 * CHAINS, registers - SPARE) if block == 1 else (registers - 1) // (block + 1)
        usual = together(self.axes, samples, lanes) > 1
        # What comes to the same patches is tried once.
        found: dict[tuple[bool, int, int, int], Choice] = {}
        for abreast in [True] if usual else [False, True] if samples >= lanes else [False]:
            for vectors in (most, max(1, min(CHAINS, most * 2 // 3))):
                patches = Patches.best(self._field(abreast), 1, vectors)
                for width in (self._width(patches), 0):
                    found.setdefault(
                        (abreast, patches.down, patches.along, width), Choice(vectors, width, packed=abreast)
                    )
        return list(found.values())

    def _width(self, patches: Patches) -> int:
        return tile_width(self.topology, patches.window, self.images.shape[1])

    def _patches(self, choice: Choice) -> Patches:
        return Patches.best(self._field(choice.packed), self.topology.groups // self._phases, choice.vectors)

    def _field(self, abreast: bool) -> Field:
        lanes = self.target.lanes
        count = max(lanes, together(self.axes, self.images.shape[0], lanes)) if abreast else 1
        return fitting(Field(*self.axes, self.images.shape[1], count, lanes))


def tile_width(topology: Topology, window: int, channels: int, run: int = RUN) -> int:
    """Columns of grains of so many channels that `window` bytes of each stay in L1, and a row has `run` grains there; 0: all."""
    held = caches().l1 * 7 // 8 // window * (topology.shape[1] // channels) // topology.pattern.columns
    filled = math.ceil(run * topology.groups * topology.width / max(topology.grains, 1))
    width = max(held, filled, 1)
    return width if width < topology.width else 0


def together(axes: Axes, samples: int, lanes: int) -> int:
    """How many samples lie side by side in a field: one where a row of the result fills a vector, and no pixel is passed over."""
    rows, columns = axes
    if columns.step == len(columns.counts) == len(rows.counts) == 1 and columns.counts[0] >= lanes:
        return 1
    pixels = min(filter(None, rows.counts)) * min(filter(None, columns.counts))
    return lanes * max(1, min(8 // pixels, 4, samples // lanes))


def fitting(field: Field) -> Field:
    """`field`; raises KernelError where it is too large for a kernel."""
    rows, columns = field.rows, field.columns
    pixels = max(rows.extent, rows.places) * max(columns.extent, columns.places) * field.abreast
    if field.channels * max(field.plane, pixels) < MOST:
        return field
    raise KernelError(
        f"images of {field.channels} channels, {rows.size} x {columns.size}",
        f"channels that take less than {MOST} numbers with the zeros around them",
        "Cut the images into parts.",
    )


def useful(threads: int, work: int) -> int:
    """Of `threads` those that so many vector operations are worth waking."""
    return min(threads, max(1, work // SHARE))


def cut(threads: int, samples: int, groups: int) -> tuple[int, int]:
    """Runs of samples, and parts of row groups, that make as many units as there are threads, where there are enough of both."""
    found = min(threads, samples)
    return found, max(1, min(-(-threads // found), groups))


__all__ = ["BLOCK", "Pass", "cut", "fitting", "tile_width", "together", "useful"]
