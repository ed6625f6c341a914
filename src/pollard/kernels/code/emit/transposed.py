"""``dX[c, shifted by t] += sum over o of W[o, c, t] dY[o]``: row groups of W scatter patches of dY to shifted channels of a field."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit import field
from pollard.kernels.code.emit.columns import Columns
from pollard.kernels.code.emit.convolve import part_of
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.tiles import each_tile
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# As for a convolution, from the result back to the images: patches are cut from the field of dY, whole ones, and sums are in the field of dX.
# A unit takes a part of the tiles of columns, each of WIDTH whole channels.
ARGUMENTS = (
    "values", "dy", "dx", "dy_field", "dx_field",
    "columns", "tiles", "starts", "offsets", "patches", "bounds", *field.names("dy"), *field.names("dx"),
    "PASSES", "PARTS", "TILES", "STRIDE", "END", "PATCHES", "SAMPLES", "WIDTH",
)  # fmt: skip


def transposed(spec: KernelSpec) -> ir.Module:
    """The module of the gradient of a convolution in its images; a unit of work is a part of the channels for a run of samples."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        _Transposed(code, spec, arguments, work[0]).run()

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


class _Transposed(Columns):
    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, unit: Value) -> None:
        super().__init__(code, spec, arguments)
        self.run_of, self.part = code.ir.sdiv(unit, arguments["PARTS"]), code.ir.srem(unit, arguments["PARTS"])
        self.dy, self.dx = (field.Images.of_unit(code, spec, arguments, of, unit) for of in ("dy", "dx"))
        self.upstream, self.sums = self.dy.field, self.dx.field  # those of the patch at hand

    def run(self) -> None:
        """Every sample of the unit, or vector of samples."""
        code, arguments = self.code, self.arguments
        tiles = part_of(code, arguments, self.part, arguments["TILES"])
        start, stop = (code.minimum(code.mul(tile, arguments["WIDTH"]), self.dx["SLABS"]) for tile in tiles)
        self.dx.clear()
        first, last = (code.index_at(arguments["bounds"], code.add(self.run_of, end)) for end in (0, 1))
        with code.loop(first, last) as group:
            sample = code.mul(group.index, self.spec.abreast)
            self.dy.take(sample, arguments["SAMPLES"], code.equal(group.index, first))
            with code.loop(0, arguments["PATCHES"]) as turn:
                place = code.mul(turn.index, 4)
                x, y, *groups = (code.index_at(arguments["patches"], code.add(place, i)) for i in range(4))
                self.sums, self.upstream = code.floats(self.dx.field, x), code.floats(self.dy.field, y)
                each_tile(code, self.spec, arguments, (groups[0], groups[1]), self.row_group, tiles=tiles)
            self.dx.give(sample, arguments["SAMPLES"], (start, stop))

    def vectors(self, group: Value, row: int) -> list[Value]:
        """The patch of that channel of dY, shifted as the group says."""
        code = self.code
        start = code.add(code.index_at(self.arguments["starts"], group), code.mul(self.dy["PLANE"], row))
        there = code.floats(self.upstream, start)
        return [code.load(code.floats(there, place), self.lanes) for _, place in self.spec.reach]

    def places(self, column: Value) -> list[Value]:
        """Of the channel of dX that it names, shifted by the tap that it names."""
        code = self.code
        start = code.floats(self.sums, code.index_at(self.arguments["offsets"], column))
        return [code.floats(start, place) for place, _ in self.spec.reach]
