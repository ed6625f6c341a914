"""Numbers of a stream: those of a block of rows, or those at single positions.

Column ``64 t + 16 k + l`` of a row has word k of the counter ``16 t + l``: whatever the number of lanes, numbers are stored side
by side as they are made.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from pollard.kernels.code.emit.deviates import normal_pair, uniform
from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS
from pollard.kernels.code.emit.philox import LOW, WORD, words
from pollard.kernels.code.simd import I32, I64, Code, Value, each
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

BITS32 = NUMBERS["float32"]  # copied as they lie there, whatever they stand for
COUNTERS, WORDS = 16, 4
TILE = COUNTERS * WORDS
PART = 1024  # positions in a unit of work

# The first row of `out` is row FIRST of the stream, and LD numbers lie between two rows. SCALE and START are the bits of float32
# numbers.
BLOCK = ("out", "PASSES", "FIRST", "COLUMNS", "LD", "SEED", "LAYER", "DRAW", "SCALE", "START")
# rows and columns are 64-bit.
POSITIONS = ("out", "rows", "columns", "PASSES", "COUNT", "SEED", "LAYER", "DRAW", "SCALE", "START")

Halves = tuple[Value, Value]  # 64-bit lanes: those at even places of a vector, and those at odd ones


def block(spec: KernelSpec) -> ir.Module:
    """The module that fills rows of a matrix; a unit of work is a row. Subnormal numbers stay: plain torch flushes none."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        scratch = code.room(4 * TILE)
        out = code.floats(arguments["out"], code.mul(work[0], arguments["LD"]))
        row = code.splat(code.add(arguments["FIRST"], work[0]), lanes // 2)
        with code.loop(0, arguments["COLUMNS"], TILE) as tile:
            left = code.sub(arguments["COLUMNS"], tile.index)
            ragged = code.less(left, TILE)
            here = code.floats(out, tile.index)
            target = code.ir.select(ragged, scratch, here)
            first = code.ir.lshr(tile.index, I64(2))
            counters = [_counters(code, first, lane, lanes) for lane in range(0, COUNTERS, lanes)]
            for turn, made in enumerate(_words(code, arguments, counters, [(row, row)] * len(counters))):
                for word, numbers in enumerate(_deviates(code, spec, made)):
                    code.store(_scaled(code, arguments, numbers), code.floats(target, COUNTERS * word + turn * lanes))
            with code.when(ragged):
                BITS32.copy(code, scratch, here, left)

    return kernel_module(BLOCK, unit, x86=False)


def positions(spec: KernelSpec) -> ir.Module:
    """The module that makes the numbers at single positions; a unit of work is PART of them."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        scratch = [code.room(8 * lanes) for _ in range(3)]
        first = code.mul(work[0], PART)
        with code.loop(first, code.minimum(code.add(first, PART), arguments["COUNT"]), lanes) as some:
            left = code.sub(arguments["COUNT"], some.index)
            ragged = code.less(left, lanes)
            out = code.floats(arguments["out"], some.index)
            places = [code.offset(arguments[name], code.mul(some.index, 8)) for name in ("rows", "columns")]
            with code.when(ragged):
                for place, room in zip(places, scratch, strict=False):
                    BITS32.copy(code, place, room, code.mul(left, 2))
            rows, columns = (
                _split(code, code.ir.select(ragged, room, place), lanes)
                for place, room in zip(places, scratch, strict=False)
            )
            numbers = _picked(code, spec, arguments, rows, columns)
            code.store(numbers, code.ir.select(ragged, scratch[2], out))
            with code.when(ragged):
                BITS32.copy(code, scratch[2], out, left)

    return kernel_module(POSITIONS, unit, x86=False)


def _picked(code: Code, spec: KernelSpec, arguments: Arguments, rows: Halves, columns: Halves) -> Value:
    """The number at each of these positions."""
    lanes = 2 * int(rows[0].type.count)

    def counter(half: Value) -> Value:
        tile = code.ir.lshr(half, each(I64(TILE.bit_length() - 1), lanes // 2))
        within = code.ir.and_(half, each(I64(COUNTERS - 1), lanes // 2))
        return code.ir.or_(code.ir.shl(tile, each(I64(COUNTERS.bit_length() - 1), lanes // 2)), within)

    (made,) = _words(code, arguments, [(counter(columns[0]), counter(columns[1]))], [rows])
    place = _side_by_side(code, columns)

    def bit(value: int) -> Value:
        zero = each(I32(0), lanes)
        return code.ir.icmp_signed("!=", code.ir.and_(place, each(I32(value), lanes)), zero)

    # Either pair of words, of which the one or the other.
    pair = [code.ir.select(bit(2 * COUNTERS), made[word + 2], made[word]) for word in range(2)]
    numbers = _deviates(code, spec, pair)
    return _scaled(code, arguments, code.ir.select(bit(COUNTERS), numbers[1], numbers[0]))


def _words(code: Code, arguments: Arguments, counters: Sequence[Halves], rows: Sequence[Halves]) -> list[list[Value]]:
    """The four random words of each counter in each row, vectors of 32-bit lanes, for each of `counters`."""
    rest = [code.splat(arguments[name], int(rows[0][0].type.count)) for name in ("LAYER", "DRAW")]
    places = [(*place, *rest) for pair in zip(counters, rows, strict=True) for place in zip(*pair, strict=True)]
    made = words(code, places, arguments["SEED"])
    return [
        [_side_by_side(code, pair) for pair in zip(even, odd, strict=True)]
        for even, odd in zip(made[::2], made[1::2], strict=True)
    ]


def _counters(code: Code, first: Value, lane: int, lanes: int) -> Halves:
    kind, base = ir.VectorType(I64, lanes // 2), code.splat(first, lanes // 2)
    even, odd = (ir.Constant(kind, list(range(lane + half, lane + lanes, 2))) for half in range(2))
    return code.ir.add(base, even), code.ir.add(base, odd)


def _deviates(code: Code, spec: KernelSpec, made: Sequence[Value]) -> list[Value]:
    if spec.operation.startswith("uniform"):
        return [uniform(code, word) for word in made]
    pairs = (normal_pair(code, pair) for pair in zip(made[::2], made[1::2], strict=True))
    return [number for pair in pairs for number in pair]


def _scaled(code: Code, arguments: Arguments, numbers: Value) -> Value:
    lanes = code.lanes_of(numbers)
    scale, start = (
        code.ir.bitcast(code.splat_index(arguments[name], lanes), numbers.type) for name in ("SCALE", "START")
    )
    return code.ir.fadd(code.ir.fmul(numbers, scale), start)


def _side_by_side(code: Code, halves: Halves) -> Value:
    """The lower 32 bits of the 64-bit lanes of both, in their order: even places are the lower half of a lane, odd the upper."""
    lanes = int(halves[0].type.count)
    low = code.ir.and_(halves[0], each(I64(LOW), lanes))
    both = code.ir.or_(low, code.ir.shl(halves[1], each(I64(WORD), lanes)))
    return code.ir.bitcast(both, ir.VectorType(I32, 2 * lanes))


def _split(code: Code, pointer: Value, lanes: int) -> Halves:
    kind = ir.VectorType(I64, lanes)
    both = code.ir.load(code.ir.bitcast(pointer, kind.as_pointer()), align=8)
    return code.shuffle(both, both, range(0, lanes, 2)), code.shuffle(both, both, range(1, lanes, 2))
