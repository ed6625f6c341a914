"""float32 in bfloat16, up or down at random: each of its two neighbours in proportion to how near it is.

bfloat16 is the upper half of float32: a random lower half, added, carries into it as often as what is cut off is large. Number
``64 b + 8 v + l`` takes half ``v % 2`` of word ``v // 2`` of the counter ``(8 b + l, 0, 0, 0)``: no random word moves between lanes.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.numbers import NUMBERS, carried, put
from pollard.kernels.code.emit.philox import WORD, words
from pollard.kernels.code.simd import I32, I64, Code, Value, each
from pollard.kernels.code.spec import KernelSpec

LANES, WORDS = 8, 4
HALF = WORD // 2
BLOCK = 2 * LANES * WORDS  # numbers that a counter in every lane serves
ABREAST = 2  # blocks side by side: the words of one alone wait for each other
AT_ONCE = ABREAST * BLOCK
PART = 64 * AT_ONCE  # numbers in a unit of work

EXACT, ROUNDED = NUMBERS["float32"], NUMBERS["bfloat16"]
ROUND = ("exact", "rounded", "PASSES", "COUNT", "SEED")


def stochastic(spec: KernelSpec) -> ir.Module:
    """The module that rounds COUNT numbers by the stream of SEED; a unit of work is PART of them. Subnormal numbers stay."""
    del spec

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        rooms = code.room(4 * AT_ONCE), code.room(2 * AT_ONCE)
        first = code.mul(work[0], PART)
        with code.loop(first, code.minimum(code.add(first, PART), arguments["COUNT"]), AT_ONCE) as some:
            left = code.sub(arguments["COUNT"], some.index)
            ragged = code.less(left, AT_ONCE)
            exact = EXACT.at(code, arguments["exact"], some.index)
            rounded = ROUNDED.at(code, arguments["rounded"], some.index)
            with code.when(ragged):
                EXACT.copy(code, exact, rooms[0], left)
            source, target = (
                code.ir.select(ragged, room, here) for room, here in zip(rooms, (exact, rounded), strict=True)
            )
            for place, bits in enumerate(_bits(code, arguments, some.index)):
                number = code.load(EXACT.at(code, source, LANES * place), LANES)
                put(code, _rounded(code, number, bits), ROUNDED.at(code, target, LANES * place))
            with code.when(ragged):
                ROUNDED.copy(code, rooms[1], rounded, left)

    return kernel_module(ROUND, unit, x86=False)


def _bits(code: Code, arguments: Arguments, first: Value) -> list[Value]:
    """Random 16 bits for each of AT_ONCE numbers from the `first` on, vectors of 32-bit lanes."""
    zero = each(I64(0), LANES)
    base = code.splat(code.ir.lshr(first, I64((BLOCK // LANES).bit_length() - 1)), LANES)
    counters = [
        code.ir.add(base, ir.Constant(ir.VectorType(I64, LANES), list(range(LANES * k, LANES * (k + 1)))))
        for k in range(ABREAST)
    ]
    made = words(code, [(counter, zero, zero, zero) for counter in counters], arguments["SEED"])
    short = [code.ir.trunc(word, ir.VectorType(I32, LANES)) for block in made for word in block]
    return [
        half
        for word in short
        for half in (
            code.ir.and_(word, each(I32((1 << HALF) - 1), LANES)),
            code.ir.lshr(word, each(I32(HALF), LANES)),
        )
    ]


def _rounded(code: Code, number: Value, bits: Value) -> Value:
    """Vectors of 16-bit lanes."""
    made = carried(code, number, bits, LANES)
    return code.ir.trunc(code.ir.lshr(made, each(I32(HALF), LANES)), ir.VectorType(ir.IntType(16), LANES))
