"""``dW[o, c, t] = sum over pixels of dY[o] X[c, shifted by t]`` on the pattern only, sample by sample."""

from __future__ import annotations

from typing import Self

from llvmlite import ir

from pollard.kernels.code.emit import field
from pollard.kernels.code.emit.convolve import part_of
from pollard.kernels.code.emit.dots import Dots
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.tiles import Tile, each_tile
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# As for a convolution. Values are a copy of their own for each run of samples, which are added up there. patches: of each tile of
# pixels, where it begins in the field of X and in that of dY.
ARGUMENTS = (
    "values", "x", "dy", "x_field", "dy_field",
    "columns", "tiles", "offsets", "patches", "bounds", *field.names("x"), *field.names("dy"),
    "PASSES", "PARTS", "TILES", "STRIDE", "END", "PATCHES", "SAMPLES", "GROUPS", "VALUES",
)  # fmt: skip


def correlate(spec: KernelSpec) -> ir.Module:
    """The module of the gradient of a convolution in its values; a unit of work is a part of the rows for a run of samples."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        index, _ = work
        x, dy = (field.Images.of_unit(code, spec, arguments, of, index) for of in ("x", "dy"))
        run, part = code.ir.sdiv(index, arguments["PARTS"]), code.ir.srem(index, arguments["PARTS"])
        first, last = (code.index_at(arguments["bounds"], code.add(run, end)) for end in (0, 1))
        values = code.floats(arguments["values"], code.mul(run, arguments["VALUES"]))
        groups = part_of(code, arguments, part, arguments["GROUPS"])
        with code.loop(first, last) as group:
            sample = code.mul(group.index, spec.abreast)
            for images in (x, dy):
                images.take(sample, arguments["SAMPLES"], code.equal(group.index, first))
            upstream, adds = (dy.at(sample), dy["PLANE"]), code.less(first, group.index)

            def row_group(_: Tile, each: Value, grains: tuple[Value, Value]) -> None:
                start, end = (code.mul(grain, spec.columns) for grain in grains)
                for offset in range(0, spec.rows, spec.block):
                    dots = _Correlate(code, spec, arguments, offset, values)
                    row = code.add(code.mul(each, spec.rows), offset)
                    dots.among(x.field, upstream, row).run((start, end), adds)

            each_tile(code, spec, arguments, groups, row_group)

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


class _Correlate(Dots):
    def among(self, x: Value, dy: tuple[Value, Value], row: Value) -> Self:
        """Of the rows of dY from `row` on with those of x; dy: where its channels are, and how far apart."""
        code, (start, plane) = self.code, dy
        self.field = x
        self.upstream = [code.floats(start, code.mul(code.add(row, r), plane)) for r in range(self.spec.block)]
        return self

    def sums(self, columns: list[Value]) -> list[Value]:
        """Summed over all pixels of the samples at hand."""
        code, arguments, lanes = self.code, self.arguments, self.lanes
        inputs = [code.floats(self.field, code.index_at(arguments["offsets"], column)) for column in columns]
        with code.loop(0, arguments["PATCHES"], carried=self.zeros(len(columns))) as patch:
            place = code.mul(patch.index, 2)
            x, y = (code.index_at(arguments["patches"], code.add(place, i)) for i in (0, 1))
            sums = patch.carried
            for there, here in self.spec.reach:
                held = [code.load(code.floats(row, code.add(y, here)), lanes) for row in self.upstream]
                loaded = [code.load(code.floats(start, code.add(x, there)), lanes) for start in inputs]
                pairs = [(vector, row) for vector in loaded for row in held]
                sums = [code.fma(*pair, total) for pair, total in zip(pairs, sums, strict=True)]
            patch.carry(sums)
        return patch.carried
