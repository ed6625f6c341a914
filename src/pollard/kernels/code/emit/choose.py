"""Scores gone through once: which grains of some rows do not stay and score above a bound, in order."""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.search import Run
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# scores: fp32, rows of WIDTH, the first of row group FIRST; those of grains that stay are written over by the first of `bound`,
# above which the others must be. flags: a byte for each grain. found, best: room for every score, which each unit of work fills
# from its first row on with places and scores, counts: how many. spare: a number to write to.
CHOOSE = (
    "scores", "bound", "flags", "columns", "pointers", "found", "best", "counts", "spare", "bounds", "PASSES", "WIDTH", "FIRST",
)  # fmt: skip


def choose(spec: KernelSpec) -> ir.Module:
    """The module that lists the scores above a bound; a unit of work is a run of rows."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        first, last = run_of_groups(code, arguments, *work)
        width, bound = arguments["WIDTH"], code.load(arguments["bound"], 1)
        whole = code.sub(width, code.ir.srem(width, code.integer(lanes)))
        rest = code.lane_mask(code.sub(width, whole), lanes)
        start = code.mul(first, width)
        with code.loop(first, last, carried=[start]) as row:
            base = code.mul(row.index, width)
            spare = code.offset(arguments["spare"], code.mul(work[0], 4))
            _exclude(code, arguments, (row.index, base), bound, spare, size=spec.index)
            with code.loop(base, code.add(base, whole), lanes, carried=row.carried) as each:
                vector = code.load(code.floats(arguments["scores"], each.index), lanes)
                each.carry(
                    [_listed(code, arguments, _above(code, vector, bound, lanes), (each.index, each.carried[0]))]
                )
            vector = code.masked_load(code.floats(arguments["scores"], each.index), rest, lanes)
            above = code.ir.and_(_above(code, vector, bound, lanes), rest)
            row.carry([_listed(code, arguments, above, (each.index, each.carried[0]))])
        code.put_index(code.sub(row.carried[0], start), arguments["counts"], work[0])

    return kernel_module(CHOOSE, unit, x86=spec.isa != "neon")


def _exclude(
    code: Code, arguments: Arguments, row: tuple[Value, Value], bound: Value, spare: Value, *, size: int
) -> None:
    scores = code.floats(arguments["scores"], row[1])
    run = Run.of(code, arguments["pointers"], code.add(row[0], arguments["FIRST"]))
    with code.loop(run.start, run.end) as grain:
        stays = code.less(0, code.byte_at(arguments["flags"], grain.index))
        place = code.floats(scores, code.index_at(arguments["columns"], grain.index, size))
        # Nobody could predict which stay: all are written to somewhere.
        code.store_one(bound, code.ir.select(stays, place, spare))


def _above(code: Code, scores: Value, bound: Value, lanes: int) -> Value:
    return code.ir.fcmp_ordered(">", scores, code.splat(bound, lanes))


def _listed(code: Code, arguments: Arguments, above: Value, places: tuple[Value, Value]) -> Value:
    """List the places from the first of `places` on that are `above`, from the second on; where they end."""
    first, start = places
    with code.each_bit(code.bits_of(above), start) as (bit, end):
        place = code.add(first, bit)
        code.put_index(place, arguments["found"], end)
        score = code.load(code.floats(arguments["scores"], place), 1)
        code.store_one(score, code.floats(arguments["best"], end))
    return end
