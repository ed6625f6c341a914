"""Where positions stand among the grains that are there: each row group is compared a vector at a time."""

from __future__ import annotations

from llvmlite import ir

from pollard.formats.indices import LIMIT
from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.search import Run
from pollard.kernels.emit.tiles import run_of_groups
from pollard.kernels.simd import Code, Value
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import TARGETS

# positions: 64-bit, ascending; `starts` holds where each row group begins in them, `pointers` in the grains. found: 32-bit.
# scratch: ROOM indices for each unit of work, to hold a row group and one vector more.
FIND = ("positions", "columns", "pointers", "starts", "found", "scratch", "bounds", "PASSES", "WIDTH", "ROOM")


def find(spec: KernelSpec) -> ir.Module:
    """The module that finds the grain at each position, -1 where there is none; a unit of work is a run of row groups."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        scratch = code.offset(arguments["scratch"], code.mul(code.mul(work[0], arguments["ROOM"]), 4))
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            there, asked = (Run.of(code, arguments[name], row.index) for name in ("pointers", "starts"))
            base = code.mul(row.index, arguments["WIDTH"])
            with code.loop(there.start, there.end) as each:
                code.put_index(
                    code.index_at(arguments["columns"], each.index), scratch, code.sub(each.index, there.start)
                )
            code.put_indices(code.splat_index(code.integer(LIMIT), lanes), scratch, there.length(code))
            with code.loop(asked.start, asked.end, carried=[code.integer(0)]) as each:
                column = code.sub(code.long_at(arguments["positions"], each.index), base)
                border = code.splat_index(column, lanes)

                def passed(position: Value, border: Value = border) -> Value:
                    return code.ir.icmp_signed("<", code.indices(scratch, position, lanes), border)

                place = code.advance(each.carried[0], passed)
                here = code.equal(code.index_at(scratch, place), column)
                grain = code.ir.select(here, code.add(there.start, place), code.integer(-1))
                code.put_index(grain, arguments["found"], each.index)
                each.carry([place])

    return kernel_module(FIND, unit, x86=spec.isa != "neon")
