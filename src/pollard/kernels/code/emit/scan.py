"""Scores gone through once: which lie within two bounds, and which are above one.

Scores are compared as integers, which order as the floats do: kernels take subnormal numbers for zeros, and a ranking may not.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import BYTE, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

MAGNITUDE = 0x7FFFFFFF  # the bits of a float but for its sign

# scores: fp32, none of them NaN. found: room for as many, which each unit of work fills from its first on with those whose
# integers are above LOW and below HIGH; counts: for each unit how many these are, are above LOW, and are below HIGH.
WITHIN = ("scores", "found", "counts", "bounds", "PASSES", "LOW", "HIGH")
# flags: a byte for each score, 1 where its integer is above LOW.
ABOVE = ("scores", "flags", "bounds", "PASSES", "LOW")


def within(spec: KernelSpec) -> ir.Module:
    """The module that lists the scores within two bounds and counts those above each; a unit of work is a run of scores."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        first, last = run_of_groups(code, arguments, *work)
        counts = code.offset(arguments["counts"], code.mul(work[0], 12))

        def scan(start: Value, lanes: int, carried: list[Value]) -> list[Value]:
            end, past, under = carried
            scores = _integers(code, arguments, start, lanes)
            above = code.ir.icmp_signed(">", scores, code.splat_index(arguments["LOW"], lanes))
            below = code.ir.icmp_signed("<", scores, code.splat_index(arguments["HIGH"], lanes))
            bits = code.bits_of(code.ir.and_(above, below))
            with code.each_bit(bits, end) as (bit, place):
                score = code.index_at(arguments["scores"], code.add(start, bit))
                code.put_index(score, arguments["found"], place)
            past, under = (
                code.add(count, code.one_bits(code.bits_of(mask))) for count, mask in ((past, above), (under, below))
            )
            return [place, past, under]

        end, *others = _each(code, spec.isa, (first, last), [first, code.integer(0), code.integer(0)], scan)
        for place, count in enumerate((code.sub(end, first), *others)):
            code.put_index(count, counts, place)

    return kernel_module(WITHIN, unit, x86=spec.isa != "neon")


def above(spec: KernelSpec) -> ir.Module:
    """The module that flags the scores above a bound; a unit of work is a run of scores."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        def scan(start: Value, lanes: int, carried: list[Value]) -> list[Value]:
            scores = _integers(code, arguments, start, lanes)
            flags = code.ir.icmp_signed(">", scores, code.splat_index(arguments["LOW"], lanes))
            kind = ir.VectorType(BYTE, lanes)
            place = code.ir.bitcast(code.offset(arguments["flags"], start), kind.as_pointer())
            code.ir.store(code.ir.zext(flags, kind), place, align=1)
            return carried

        _each(code, spec.isa, run_of_groups(code, arguments, *work), [], scan)

    return kernel_module(ABOVE, unit, x86=spec.isa != "neon")


def _each(
    code: Code,
    isa: str,
    run: tuple[Value, Value],
    carried: list[Value],
    scan: Callable[[Value, int, list[Value]], list[Value]],
) -> list[Value]:
    """Go through `run` vector by vector, and through what is left one by one; what is carried at the end."""
    first, last = run
    lanes = TARGETS[isa].lanes
    with code.loop(first, code.sub(last, lanes - 1), lanes, carried=carried) as some:
        some.carry(scan(some.index, lanes, some.carried))
    with code.loop(some.index, last, carried=some.carried) as one:
        one.carry(scan(one.index, 1, one.carried))
    return one.carried


def _integers(code: Code, arguments: Arguments, start: Value, lanes: int) -> Value:
    """Scores from `start` on as integers of the same order: of negative ones all bits but the sign turn over."""
    bits = code.indices(arguments["scores"], start, lanes)
    signs = code.ir.ashr(bits, ir.Constant(bits.type, [31] * lanes))
    magnitude = ir.Constant(bits.type, [MAGNITUDE] * lanes)
    return code.ir.xor(bits, code.ir.and_(signs, magnitude))
