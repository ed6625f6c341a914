"""``Y[o] = sum over c, t of W[o, c, t] X[c, shifted by t]``: rows of W gather shifted channels of a field, a tile of pixels at a time."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit import field
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.rows import Rows
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec

# offsets: of each column of W, where in the field it is read for the first pixel. tiles: of each, where it begins in the field and
# in the result, and which row groups it is for. bounds: which vectors of samples each unit takes. field and room are memory of a
# unit each; results lie in the room where samples lie abreast, pixel p of a channel at ends[p].
ARGUMENTS = (
    "values", "x", "y", "bias", "field", "room",
    "columns", "pointers", "offsets", "tiles", "bounds", "ends", *field.names("x"),
    "PASSES", "TILES", "SAMPLES", "Y_SAMPLE", "Y_CHANNEL", "Y_CHANNELS", "Y_PIXELS", "Y_PLANE", "ROOM",
)  # fmt: skip


def convolve(spec: KernelSpec) -> ir.Module:
    """The module of a convolution; a unit of work is a run of samples."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        _Convolve(code, spec, arguments, work[0]).run()

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


class _Convolve(Rows):
    def __init__(self, code: Code, spec: KernelSpec, arguments: Arguments, unit: Value) -> None:
        super().__init__(code, spec, arguments)
        self.unit = unit
        own = code.floats(arguments["field"], code.mul(unit, arguments["X_FIELD"]))
        self.images = field.Images(code, spec, arguments, "x", own)
        self.x = own  # the tile at hand
        self.room = code.floats(arguments["room"], code.mul(unit, arguments["ROOM"]))

    def run(self) -> None:
        """Every sample of the unit, or vector of samples."""
        code, arguments = self.code, self.arguments
        self.images.clear()
        first, last = (code.index_at(arguments["bounds"], code.add(self.unit, end)) for end in (0, 1))
        with code.loop(first, last) as group:
            sample = code.mul(group.index, self.spec.abreast)
            self.images.take(sample, arguments["SAMPLES"])
            alone = self.spec.abreast == 1
            result = self._result(sample, code.integer(0)) if alone else self.room
            with code.loop(0, arguments["TILES"]) as turn:
                place = code.mul(turn.index, 4)
                x, y, *groups = (code.index_at(arguments["tiles"], code.add(place, i)) for i in range(4))
                base = self.numbers.at(code, result, y) if alone else code.floats(result, y)
                self._tile(code.floats(self.images.field, x), base, (groups[0], groups[1]))
            if not alone:
                self._spread(sample)

    def _result(self, sample: Value, channel: Value) -> Value:
        code, arguments = self.code, self.arguments
        place = code.add(code.mul(sample, arguments["Y_SAMPLE"]), code.mul(channel, arguments["Y_CHANNEL"]))
        return self.numbers.at(code, arguments["y"], place)

    def _spread(self, sample: Value) -> None:
        code, arguments = self.code, self.arguments
        with code.loop(0, arguments["Y_CHANNELS"]) as channel:
            source = code.floats(self.room, code.mul(channel.index, arguments["Y_PLANE"]))
            for first in range(0, self.spec.abreast, self.lanes):
                each = [code.add(sample, first + lane) for lane in range(self.lanes)]
                targets = [(self._result(own, channel.index), code.less(own, arguments["SAMPLES"])) for own in each]
                place = code.floats(source, first), arguments["ends"]
                field.spread(code, self.spec, place, arguments["Y_PIXELS"], targets)

    def _tile(self, x: Value, y: Value, groups: tuple[Value, Value]) -> None:
        code, spec, pointers = self.code, self.spec, self.arguments["pointers"]
        self.x = x
        with code.loop(*groups) as group:
            grains = code.index_at(pointers, group.index), code.index_at(pointers, code.add(group.index, 1))
            for offset in range(0, spec.rows, spec.block):
                rows = [code.add(code.mul(group.index, spec.rows), offset + r) for r in range(spec.block)]
                sums = self.starting_sums(rows, len(spec.reach))
                self._store(y, rows, self.accumulate(grains, offset, sums, unroll=True))

    def _store(self, y: Value, rows: list[Value], sums: list[Value]) -> None:
        code, spec, count = self.code, self.spec, len(self.spec.reach)
        if spec.relu:
            sums = [code.relu(total, self.lanes) for total in sums]
        for number, row in enumerate(rows):
            own = sums[number * count : (number + 1) * count]
            for total, (_, place) in zip(own, spec.reach, strict=True):
                if spec.abreast == 1:
                    start = code.add(code.mul(row, self.arguments["Y_CHANNEL"]), place)
                    self.numbers.store_few(code, total, self.numbers.at(code, y, start))
                else:
                    start = code.add(code.mul(row, self.arguments["Y_PLANE"]), place)
                    code.store(total, code.floats(y, start))

    def vectors(self, column: Value) -> list[Value]:
        """The channel that it names, shifted by the tap that it names."""
        code = self.code
        start = code.floats(self.x, code.index_at(self.arguments["offsets"], column))
        return [code.load(code.floats(start, place), self.lanes) for place, _ in self.spec.reach]
