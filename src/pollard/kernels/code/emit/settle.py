"""Numbers made distinct and ascending by a bit for each that there could be: what comes twice sets the same bit."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import I64, Code, Value
from pollard.kernels.code.spec import KernelSpec

WORD = 64
LINE = 8  # words of a cache line

# bits: WORDS words of them, all 0 at first, then a line for each unit of work. counts: how many numbers lie in its words.
TICK = ("numbers", "bits", "counts", "bounds", "PASSES", "COUNT", "WORDS")
# starts: where the numbers of each unit of work go.
LIST = ("bits", "starts", "found", "bounds", "PASSES")


def tick(spec: KernelSpec) -> ir.Module:
    """The module that sets the bit of each number; a unit of work is a run of words, and looks at all numbers."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        bits = arguments["bits"]
        first, last = run_of_groups(code, arguments, *work)
        words, other = code.sub(last, first), code.add(arguments["WORDS"], code.mul(work[0], LINE))
        with code.loop(0, arguments["COUNT"]) as each:
            number = code.index_at(arguments["numbers"], each.index)
            word = code.ir.lshr(number, I64(6))
            # Nobody could predict whose word it is: all are written to somewhere.
            own = code.ir.icmp_unsigned("<", code.sub(word, first), words)
            word = code.ir.select(own, word, other)
            bit = code.ir.shl(I64(1), code.ir.and_(number, I64(WORD - 1)))
            code.put_long(code.ir.or_(code.long_at(bits, word), bit), bits, word)
        with code.loop(first, last, carried=[code.integer(0)]) as word:
            word.carry([code.add(word.carried[0], code.one_bits(code.long_at(bits, word.index)))])
        code.put_index(word.carried[0], arguments["counts"], work[0])

    return kernel_module(TICK, unit, x86=spec.isa != "neon")


def listed(spec: KernelSpec) -> ir.Module:
    """The module that lists the numbers whose bits are set; a unit of work is a run of words."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        start = code.index_at(arguments["starts"], work[0])
        with code.loop(*run_of_groups(code, arguments, *work), carried=[start]) as word:
            bits = code.long_at(arguments["bits"], word.index)
            with code.each_bit(bits, word.carried[0]) as (bit, place):
                code.put_index(code.add(code.mul(word.index, WORD), bit), arguments["found"], place)
            word.carry([place])

    return kernel_module(LIST, unit, x86=spec.isa != "neon")
