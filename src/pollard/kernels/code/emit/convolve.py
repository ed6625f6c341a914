"""``Y[o] = sum over c, t of W[o, c, t] X[c, shifted by t]``: rows of W gather shifted channels of a field, a tile of pixels at a time."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit import field
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.rows import Rows
from pollard.kernels.code.emit.tiles import Tile, each_tile
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# offsets: of each column of W, where in the field it is read for the first pixel. patches: of each tile of pixels, where it begins in
# the field and in the result, and which row groups it is for. bounds: which vectors of samples each run of units
# takes, which are PARTS units, each for a part of the rows. x_field and room are memory of a
# unit each; sums rest in the room from tile to tile, and results lie there where samples lie abreast, pixel p of a channel at ends[p].
ARGUMENTS = (
    "values", "x", "y", "bias", "x_field", "room",
    "columns", "tiles", "offsets", "patches", "bounds", "ends", *field.names("x"),
    "PASSES", "PARTS", "TILES", "STRIDE", "END", "PATCHES", "SAMPLES", "Y_SAMPLE", "Y_CHANNEL", "Y_GROUPS", "Y_SLABS", "Y_PIXELS", "Y_PLANE", "ROOM",
)  # fmt: skip


def convolve(spec: KernelSpec) -> ir.Module:
    """The module of a convolution; a unit of work is a part of the rows for a run of samples."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        _Convolve(code, spec, arguments, work[0]).run()

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


class _Convolve(Rows):
    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, unit: Value) -> None:
        super().__init__(code, spec, arguments)
        self.run_of, self.part = code.ir.sdiv(unit, arguments["PARTS"]), code.ir.srem(unit, arguments["PARTS"])
        self.count = len(spec.reach)
        self.images = field.Images.of_unit(code, spec, arguments, "x", unit)
        self.x = self.y = self.images.field  # those of the patch at hand
        self.room = code.floats(arguments["room"], code.mul(unit, arguments["ROOM"]))

    def run(self) -> None:
        """Every sample of the unit, or vector of samples."""
        code, arguments = self.code, self.arguments
        first, last = (code.index_at(arguments["bounds"], code.add(self.run_of, end)) for end in (0, 1))
        with code.loop(first, last) as group:
            sample = code.mul(group.index, self.spec.abreast)
            self.images.take(sample, arguments["SAMPLES"], code.equal(group.index, first))
            alone = self.spec.abreast == 1
            result = self._result(sample, code.integer(0)) if alone else self.room
            with code.loop(0, arguments["PATCHES"]) as turn:
                place = code.mul(turn.index, 4)
                x, y, start, end = (code.index_at(arguments["patches"], code.add(place, i)) for i in range(4))
                self.x = code.floats(self.images.field, x)
                self.y = self.numbers.at(code, result, y) if alone else code.floats(result, y)
                own = part_of(code, arguments, self.part, code.sub(end, start))
                groups = code.add(start, own[0]), code.add(start, own[1])
                each_tile(code, self.spec, arguments, groups, self.row_group)
            if not alone:
                self._spread(sample)

    def _result(self, sample: Value, channel: Value) -> Value:
        code, arguments = self.code, self.arguments
        place = code.add(code.mul(sample, arguments["Y_SAMPLE"]), code.mul(channel, arguments["Y_CHANNEL"]))
        return self.numbers.at(code, arguments["y"], place)

    def _spread(self, sample: Value) -> None:
        code, arguments = self.code, self.arguments
        own = part_of(code, arguments, self.part, arguments["Y_GROUPS"])
        with code.loop(*(code.mul(end, arguments["Y_SLABS"]) for end in own)) as slab:
            source = code.floats(self.room, code.mul(slab.index, arguments["Y_PLANE"]))
            for first in range(0, self.spec.abreast, self.lanes):
                each = [code.add(sample, first + lane) for lane in range(self.lanes)]
                targets = [(self._result(own, slab.index), code.less(own, arguments["SAMPLES"])) for own in each]
                place = code.floats(source, first), arguments["ends"]
                field.spread(code, self.spec, place, arguments["Y_PIXELS"], targets)

    def put(self, tile: Tile, rows: list[Value], sums: list[list[Value]]) -> None:
        """To the result, or to the room, where they rest from tile to tile too."""
        code, alone = self.code, self.spec.abreast == 1
        if not self.spec.rests:
            self._write(rows, sums, to_room=not alone)
            return
        with code.ir.if_else(tile.is_last) as (last, others):
            with last:
                self._write(rows, sums, to_room=False)
            with others:
                self._write(rows, sums, to_room=True)

    def left(self, row: Value) -> list[Value]:
        """From there."""
        return [self.code.load(there, self.lanes) for there in self._in_room(row)]

    def _write(self, rows: list[Value], sums: list[list[Value]], *, to_room: bool) -> None:
        code = self.code
        for row, own in zip(rows, sums, strict=True):
            places = self._in_room(row) if to_room else self._in_result(row)
            for total, there in zip(own, places, strict=True):
                if to_room:
                    code.store(total, there)
                else:
                    self.numbers.store_few(code, total, there)

    def _in_result(self, row: Value) -> list[Value]:
        code, start = self.code, self.code.mul(row, self.arguments["Y_CHANNEL"])
        return [self.numbers.at(code, self.y, code.add(start, place)) for _, place in self.spec.reach]

    def _in_room(self, row: Value) -> list[Value]:
        code = self.code
        if self.spec.abreast == 1:
            # Close together: channels of a result may all fall into the same few places of a cache.
            start = code.mul(row, self.count * self.lanes)
            return [code.floats(self.room, code.add(start, number * self.lanes)) for number in range(self.count)]
        start = code.mul(row, self.arguments["Y_PLANE"])
        return [code.floats(self.y, code.add(start, place)) for _, place in self.spec.reach]

    def vectors(self, column: Value) -> list[Value]:
        """The channel that it names, shifted by the tap that it names."""
        code = self.code
        start = code.floats(self.x, code.index_at(self.arguments["offsets"], column))
        return [code.load(code.floats(start, place), self.lanes) for place, _ in self.spec.reach]


def part_of(code: Code, arguments: Arguments, part: Value, count: Value) -> tuple[Value, Value]:
    """Where the `part` begins of as many equal ones of `count` things as there are PARTS, and where it ends."""
    first, last = (code.ir.sdiv(code.mul(code.add(part, end), count), arguments["PARTS"]) for end in (0, 1))
    return first, last
