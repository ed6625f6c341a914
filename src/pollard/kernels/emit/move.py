"""Values that move with their grains, whatever their type: as bytes."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.tiles import run_of_groups
from pollard.kernels.simd import BYTE, Code, Value
from pollard.kernels.spec import KernelSpec

# `grown` holds how many grains were grown before each chunk; STEP is the distance of their values in `fill`, 0 if all
# are the same. wrong: set where a source is none of the GRAINS of `old`.
ARGUMENTS = ("old", "new", "source", "fill", "grown", "bounds", "wrong", "PASSES", "STEP", "GRAINS")


def move(spec: KernelSpec) -> ir.Module:
    """The module that gathers the values of kept grains and fills in those of grown ones; a unit is a run of grains."""
    length = spec.size * spec.rows
    grain = ir.VectorType(BYTE, length).as_pointer()

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        before = code.index_at(arguments["grown"], work[0])
        nothing = code.ir.icmp_signed("!=", before, before)
        with code.loop(*run_of_groups(code, arguments, *work), carried=[before, nothing]) as each:
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
        with code.when(each.carried[1]):
            code.put_index(1, arguments["wrong"], 0)

    return kernel_module(ARGUMENTS, unit, x86=spec.isa != "neon")
