"""Rows that move: what stays is merged with what comes, each row group on its own.

Nobody can predict which of two grains is the lower: a whole vector of those that stay is compared with the next that comes.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.press import entries_of, places, press
from pollard.kernels.code.emit.search import Run, close, copy_indices, hold, pass_below
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import I64, Code, Value
from pollard.kernels.code.spec import KernelSpec
from pollard.kernels.code.target import TARGETS

# flags: a byte for each grain, 1 where it stays. grown, ranks: 64-bit, ascending. `pointers` and `comes` hold where each
# row group begins in the grains and in them, `free` how many absent grains are in the row groups before. scratch: for each unit of work ROOM indices, which hold a row group and one
# vector more, for `rewire` four times.
MARK = (
    "grown", "columns", "pointers", "comes", "flags", "counts", "clash", "scratch", "bounds", "PASSES", "WIDTH", "GRAINS", "ROOM",
)  # fmt: skip
REWIRE = (
    "grown", "columns", "pointers", "comes", "flags", "starts", "fresh", "source", "met", "scratch", "bounds", "PASSES", "WIDTH",
    "ROOM",
)  # fmt: skip
ABSENT = (
    "flags", "ranks", "free", "columns", "pointers", "comes", "positions", "scratch", "bounds", "PASSES", "WIDTH", "ROOM",
)  # fmt: skip
TALLY = ("flags", "pointers", "counts", "bounds", "PASSES")
PLACE = ("flags", "columns", "pointers", "starts", "positions", "scratch", "bounds", "PASSES", "WIDTH", "ROOM")


def mark(spec: KernelSpec) -> ir.Module:
    """The module that flags the grains that come back, too, and counts the grains of the new rows; a unit is a run of rows.

    flags: has one byte more than there are grains, which may be written to. clash: set where a grain both stays and comes.
    """
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        flags, scratch = arguments["flags"], _scratch(code, arguments, work)
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            there, comes = (Run.of(code, arguments[name], row.index) for name in ("pointers", "comes"))
            hold(code, (arguments["columns"], spec.index), there, scratch, lanes)
            base = code.mul(row.index, arguments["WIDTH"])
            with code.loop(comes.start, comes.end, carried=[code.integer(0)] * 3) as each:
                taken, returned, clash = each.carried
                wanted = code.sub(code.long_at(arguments["grown"], each.index), base)
                taken = pass_below(code, scratch, (taken, wanted), lanes)
                same = code.equal(code.index_at(scratch, taken), wanted)
                # What is no grain of this row is marked beyond all: another thread may be at the row that follows.
                grain = code.ir.select(same, code.add(there.start, taken), arguments["GRAINS"])
                stays = code.only_if(same, code.byte_at(flags, grain))
                code.put_byte(1, flags, grain)
                each.carry([taken, code.add(returned, code.one_if(same)), code.ir.or_(clash, stays)])
            _, returned, clash = each.carried
            with code.when(code.less(0, clash)):
                code.put_index(1, arguments["clash"], 0)
            kept = _flagged(code, flags, there)
            code.put_index(code.sub(code.add(kept, comes.length(code)), returned), arguments["counts"], row.index)

    return kernel_module(MARK, unit, x86=spec.isa != "neon")


def rewire(spec: KernelSpec) -> ir.Module:
    """The module that merges flagged and grown grains into new rows; a unit of work is a run of row groups.

    met: how many of the grown are among the flagged, for each unit. Rows that are shorter for that end with anything.
    """
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        scratch, quarter = _scratch(code, arguments, work), code.ir.lshr(arguments["ROOM"], I64(2))
        kept, merged = (
            tuple(code.offset(scratch, code.mul(code.mul(quarter, part), 4)) for part in parts)
            for parts in ((0, 1), (2, 3))
        )
        with code.loop(*run_of_groups(code, arguments, *work), carried=[code.integer(0)]) as row:
            there, comes, new = (Run.of(code, arguments[name], row.index) for name in ("pointers", "comes", "starts"))
            streams = [(entries_of(code, arguments["columns"], spec.index), kept[0]), (places(code), kept[1])]
            count = press(code, spec.isa, arguments["flags"], there, streams)
            close(code, kept[0], count, lanes)
            base = code.mul(row.index, arguments["WIDTH"])
            # A vector goes past the next grain that comes, which is then written over it; so is what comes but is there
            # already, by the vector that follows.
            with code.loop(comes.start, comes.end, carried=[code.integer(0)] * 2) as each:
                taken, came = each.carried
                wanted = code.sub(code.long_at(arguments["grown"], each.index), base)
                taken = pass_below(code, kept[0], (taken, wanted), lanes, (kept, merged, came))
                place, same = code.add(taken, came), code.equal(code.index_at(kept[0], taken), wanted)
                code.put_index(wanted, merged[0], place)
                code.put_index(-1, merged[1], place)
                each.carry([taken, code.sub(code.add(came, 1), code.one_if(same))])
            taken, came = each.carried
            row.carry([code.add(row.carried[0], code.sub(comes.length(code), came))])
            for own, both, name, size in zip(kept, merged, ("fresh", "source"), (spec.index, 4), strict=True):
                rest, place = code.sub(count, taken), code.add(taken, came)
                copy_indices(code, code.offset(own, code.mul(taken, 4)), code.offset(both, code.mul(place, 4)), rest)
                target = code.offset(arguments[name], code.mul(new.start, size))
                copy_indices(code, both, target, new.length(code), sizes=(4, size))
        code.put_index(row.carried[0], arguments["met"], work[0])

    return kernel_module(REWIRE, unit, x86=spec.isa != "neon")


def absent(spec: KernelSpec) -> ir.Module:
    """The module that turns ranks among the grains that are not there into positions; a unit is a run of row groups.

    The rank of an absent grain is how many absent ones are below it: all below it, but for those that are there.
    """
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        scratch = _scratch(code, arguments, work)
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            there, comes = (Run.of(code, arguments[name], row.index) for name in ("pointers", "comes"))
            base = code.mul(row.index, arguments["WIDTH"])
            columns, stays, size = arguments["columns"], there.length(code), spec.index
            source = code.offset(columns, code.mul(there.start, size))
            if spec.permuted:
                streams = [(entries_of(code, columns, size), scratch)]
                stays = press(code, spec.isa, arguments["flags"], there, streams)
                source, size = scratch, 4
            with code.loop(0, stays) as each:
                code.put_index(code.sub(code.index_at(source, each.index, size), each.index), scratch, each.index)
            close(code, scratch, stays, lanes)
            before = code.long_at(arguments["free"], row.index)
            with code.loop(comes.start, comes.end, carried=[code.integer(0)]) as each:
                free = code.sub(code.long_at(arguments["ranks"], each.index), before)
                wanted = code.splat_index(free, lanes)

                def passed(position: Value, wanted: Value = wanted) -> Value:
                    return code.ir.icmp_signed("<=", code.indices(scratch, position, lanes), wanted)

                taken = code.advance(each.carried[0], passed)
                code.put_long(code.add(code.add(base, free), taken), arguments["positions"], each.index)
                each.carry([taken])

    return kernel_module(ABSENT, unit, x86=spec.isa != "neon")


def tally(spec: KernelSpec) -> ir.Module:
    """The module that counts the flags of each row group; a unit of work is a run of row groups."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            flagged = _flagged(code, arguments["flags"], Run.of(code, arguments["pointers"], row.index))
            code.put_index(flagged, arguments["counts"], row.index)

    return kernel_module(TALLY, unit, x86=spec.isa != "neon")


def place(spec: KernelSpec) -> ir.Module:
    """The module that lists the flat positions of flagged grains; a unit of work is a run of row groups.

    starts: where those of each row group go.
    """

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        scratch = _scratch(code, arguments, work)
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            there = Run.of(code, arguments["pointers"], row.index)
            streams = [(entries_of(code, arguments["columns"], spec.index), scratch)]
            count = press(code, spec.isa, arguments["flags"], there, streams)
            base = code.mul(row.index, arguments["WIDTH"])
            place = code.offset(arguments["positions"], code.mul(code.index_at(arguments["starts"], row.index), 8))
            with code.loop(0, count) as each:
                code.put_long(code.add(base, code.index_at(scratch, each.index)), place, each.index)

    return kernel_module(PLACE, unit, x86=spec.isa != "neon")


def _scratch(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> Value:
    return code.offset(arguments["scratch"], code.mul(code.mul(work[0], arguments["ROOM"]), 4))


def _flagged(code: Code, flags: Value, run: Run) -> Value:
    # Eight flags at a time, each a byte of 0 or 1.
    stop = code.sub(run.end, 7)
    with code.loop(run.start, stop, 8, carried=[code.integer(0)]) as eight:
        address = code.ir.bitcast(code.offset(flags, eight.index), I64.as_pointer())
        eight.carry([code.add(eight.carried[0], code.one_bits(code.ir.load(address, align=1)))])
    with code.loop(eight.index, run.end, carried=eight.carried) as each:
        each.carry([code.add(each.carried[0], code.byte_at(flags, each.index))])
    (count,) = each.carried
    return count
