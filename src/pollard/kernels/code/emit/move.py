"""Values that move with their grains, whatever their type: as bytes."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import BYTE, I32, I64, Code, Value
from pollard.kernels.code.spec import KernelSpec

# `grown` holds how many grains were grown before each chunk; STEP is the distance of their values in `fill`, 0 if all
# are the same. wrong: set where a source is none of the GRAINS of `old`.
ARGUMENTS = ("old", "new", "source", "fill", "grown", "bounds", "wrong", "PASSES", "STEP", "GRAINS")


# Of a vector of new grains all old ones lie, nearly always, within two vectors from the first of them on.
LANES = 16


def move(spec: KernelSpec) -> ir.Module:
    """The module that gathers the values of kept grains and fills in those of grown ones; a unit is a run of grains."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        first, last = run_of_groups(code, arguments, *work)
        before = code.index_at(arguments["grown"], work[0])
        nothing = code.ir.icmp_signed("!=", before, before)
        if spec.isa != "avx512" or spec.rows * spec.size != 4:
            _, wrong = _one_by_one(code, spec, arguments, (first, last), [before, nothing])
        else:
            whole = code.sub(last, code.ir.srem(code.sub(last, first), I64(LANES)))
            with code.loop(first, whole, LANES, carried=[before, nothing, code.integer(0)]) as each:
                each.carry(_vector(code, spec, arguments, each.index, each.carried))
            _, wrong = _one_by_one(code, spec, arguments, (each.index, last), each.carried[:2])
        with code.when(wrong):
            code.put_index(1, arguments["wrong"], 0)

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")


def _one_by_one(
    code: Code, spec: KernelSpec, arguments: Arguments, run: tuple[Value, Value], carried: list[Value]
) -> list[Value]:
    length = spec.size * spec.rows
    grain = ir.VectorType(BYTE, length).as_pointer()
    with code.loop(*run, carried=carried) as each:
        came, wrong = each.carried
        source = code.index_at(arguments["source"], each.index)
        beyond = code.ir.icmp_signed(">=", source, arguments["GRAINS"])
        grown = code.ir.or_(code.less(source, 0), beyond)
        stayed = code.offset(arguments["old"], code.mul(source, length))
        fill = code.offset(arguments["fill"], code.mul(came, arguments["STEP"]))
        value = code.ir.load(code.ir.bitcast(code.ir.select(grown, fill, stayed), grain), align=1)
        place = code.offset(arguments["new"], code.mul(each.index, length))
        code.ir.store(value, code.ir.bitcast(place, grain), align=1)
        each.carry([code.add(came, code.one_if(grown)), code.ir.or_(wrong, beyond)])
    return each.carried


def _vector(code: Code, spec: KernelSpec, arguments: Arguments, start: Value, carried: list[Value]) -> list[Value]:
    """As one by one, for a vector of grains, whose sources rise: `carried` holds what none of them is below, too."""
    came, wrong, least = carried
    build = code.ir
    source = code.indices(arguments["source"], start, LANES)
    lowest = code.splat_index(code.integer(0), LANES)
    grown = build.icmp_signed("<", source, lowest)
    offset = build.sub(source, code.splat_index(least, LANES))
    near = build.icmp_unsigned("<", offset, code.splat_index(code.integer(2 * LANES), LANES))
    all_near = code.equal(code.bits_of(build.or_(grown, near)), (1 << LANES) - 1)
    inside = build.icmp_signed("<=", code.add(least, 2 * LANES), arguments["GRAINS"])
    # Another fill for each grown grain is left to one by one.
    easy = build.and_(build.and_(all_near, inside), code.equal(arguments["STEP"], 0))
    with build.if_else(easy) as (quick, slow):
        with quick:
            old = [code.indices(arguments["old"], code.add(least, lane), LANES) for lane in (0, LANES)]
            name = "llvm.x86.avx512.vpermi2var.d.512"
            moved = code.call(name, source.type, [old[0], offset, old[1]])
            fill = code.splat_index(code.index_at(arguments["fill"], 0), LANES)
            code.put_indices(build.select(grown, fill, moved), arguments["new"], start)
            quick_end = build.block
        with slow:
            slow_came, slow_wrong = _one_by_one(code, spec, arguments, (start, code.add(start, LANES)), [came, wrong])
            slow_end = build.block
    blocks = (quick_end, slow_end)
    came, wrong = code.either((came, slow_came), blocks), code.either((wrong, slow_wrong), blocks)
    highest = build.sext(code.call("llvm.vector.reduce.smax.v16i32", I32, [source]), I64)
    following = code.add(highest, 1)
    return [came, wrong, build.select(code.less(least, following), following, least)]
