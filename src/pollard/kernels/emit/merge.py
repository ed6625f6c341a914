"""Rows that move: what stays is merged with what comes, each row group on its own.

Nobody can predict which of two grains is the lower: a whole vector of those that stay is compared with the next that comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from pollard.formats.indices import LIMIT
from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.search import Run
from pollard.kernels.emit.tiles import run_of_groups
from pollard.kernels.simd import I64, Code, Value
from pollard.kernels.spec import KernelSpec
from pollard.kernels.target import TARGETS

# kept: indices of the grains that stay; grown, ranks: 64-bit too. `stays` and `comes` hold where each row group begins in
# them. fresh, source: the new columns, and where each grain was. clash: set where a grain both stays and comes. scratch:
# ROOM indices for each unit of work, to hold what stays of a row group and one vector more, for `rewire` twice.
REWIRE = (
    "kept", "grown", "columns", "stays", "comes", "fresh", "source", "clash", "scratch", "bounds", "PASSES", "WIDTH", "ROOM",
)  # fmt: skip
ABSENT = (
    "kept", "ranks", "columns", "stays", "comes", "positions", "scratch", "bounds", "PASSES", "WIDTH", "ROOM",
)  # fmt: skip


def rewire(spec: KernelSpec) -> ir.Module:
    """The module that merges kept and grown grains into new rows; a unit of work is a run of row groups."""
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        first, last = run_of_groups(code, arguments, *work)
        limit = code.add(code.index_at(arguments["stays"], last), code.index_at(arguments["comes"], last))
        scratch = code.offset(arguments["scratch"], code.mul(code.mul(work[0], arguments["ROOM"]), 4))
        with code.loop(first, last) as row:
            stays, comes = (Run.of(code, arguments[name], row.index) for name in ("stays", "comes"))
            merge = _Merge(code, arguments, stays, comes, code.mul(row.index, arguments["WIDTH"]))
            # Whole vectors are written, past the end of the row: the next one writes over that, but not what another
            # thread has written.
            safe = code.add(code.add(stays.end, comes.end), lanes)
            with code.ir.if_else(code.less(limit, safe)) as (one_by_one, by_vectors):
                with one_by_one:
                    merge.one_by_one()
                with by_vectors:
                    merge.by_vectors(scratch, lanes)

    return kernel_module(REWIRE, unit, x86=spec.isa != "neon")


@dataclass(frozen=True, slots=True)
class _Merge:
    """One row group, whose grains lie from flat position `base` on."""

    code: Code
    arguments: Arguments
    stays: Run
    comes: Run
    base: Value

    def one_by_one(self) -> None:
        """Every grain is compared and written by itself."""
        code, stays, comes = self.code, self.stays, self.comes
        with code.loop(comes.start, comes.end, carried=[stays.start]) as each:
            wanted = self._grown(each.index)
            below = code.scan(each.carried[0], stays.end, lambda position: code.less(self._column(position), wanted))
            with below as kept:
                self._keep(kept.index, each.index)
            same = code.scan(kept.index, stays.end, lambda position: code.equal(self._column(position), wanted))
            with same as both:
                code.put_index(1, self.arguments["clash"], 0)
            self._put(code.add(both.index, each.index), wanted, -1)
            each.carry([both.index])
        self._rest(each.carried[0])

    def by_vectors(self, scratch: Value, lanes: int) -> None:
        """Grains that stay are copied a vector at a time: those past the next grown one are written over by it."""
        code, stays, comes = self.code, self.stays, self.comes
        columns, sources = scratch, code.offset(scratch, code.mul(code.ir.lshr(self.arguments["ROOM"], I64(1)), 4))
        with code.loop(stays.start, stays.end) as each:
            place = code.sub(each.index, stays.start)
            code.put_index(self._column(each.index), columns, place)
            code.put_index(self._kept(each.index), sources, place)
        code.put_indices(code.splat_index(code.integer(LIMIT), lanes), columns, stays.length(code))
        with code.loop(comes.start, comes.end, carried=[code.integer(0)]) as each:
            wanted, start = self._grown(each.index), code.add(stays.start, each.index)
            border = code.splat_index(wanted, lanes)

            def passed(position: Value, start: Value = start, border: Value = border) -> Value:
                found, target = code.indices(columns, position, lanes), code.add(start, position)
                code.put_indices(found, self.arguments["fresh"], target)
                code.put_indices(code.indices(sources, position, lanes), self.arguments["source"], target)
                return code.ir.icmp_signed("<", found, border)

            taken = code.advance(each.carried[0], passed)
            with code.when(code.equal(code.index_at(columns, taken), wanted)):
                code.put_index(1, self.arguments["clash"], 0)
            self._put(code.add(start, taken), wanted, -1)
            each.carry([taken])
        self._rest(code.add(stays.start, each.carried[0]))

    def _rest(self, first: Value) -> None:
        with self.code.loop(first, self.stays.end) as kept:
            self._keep(kept.index, self.comes.end)

    def _kept(self, position: Value) -> Value:
        return self.code.long_at(self.arguments["kept"], position)

    def _column(self, position: Value) -> Value:
        return self.code.index_at(self.arguments["columns"], self._kept(position))

    def _grown(self, position: Value) -> Value:
        return self.code.sub(self.code.long_at(self.arguments["grown"], position), self.base)

    def _keep(self, position: Value, came: Value) -> None:
        self._put(self.code.add(position, came), self._column(position), self._kept(position))

    def _put(self, place: Value, column: Value, source: Value | int) -> None:
        self.code.put_index(column, self.arguments["fresh"], place)
        self.code.put_index(source, self.arguments["source"], place)


def absent(spec: KernelSpec) -> ir.Module:
    """The module that turns ranks among the grains that are not there into positions; a unit is a run of row groups.

    The rank of an absent grain is how many absent ones are below it: all below it, but for those that are there.
    """
    lanes = TARGETS[spec.isa].lanes

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        def column(position: Value) -> Value:
            grain = code.long_at(arguments["kept"], position) if spec.permuted else position
            return code.index_at(arguments["columns"], grain)

        scratch = code.offset(arguments["scratch"], code.mul(code.mul(work[0], arguments["ROOM"]), 4))
        with code.loop(*run_of_groups(code, arguments, *work)) as row:
            stays, comes = (Run.of(code, arguments[name], row.index) for name in ("stays", "comes"))
            base = code.mul(row.index, arguments["WIDTH"])
            with code.loop(stays.start, stays.end) as each:
                below = code.sub(each.index, stays.start)
                code.put_index(code.sub(column(each.index), below), scratch, below)
            code.put_indices(code.splat_index(code.integer(LIMIT), lanes), scratch, stays.length(code))
            # Ranks of earlier rows count all of their grains but those there.
            before = code.sub(base, stays.start)
            with code.loop(comes.start, comes.end, carried=[code.integer(0)]) as each:
                free = code.sub(code.long_at(arguments["ranks"], each.index), before)
                wanted = code.splat_index(free, lanes)

                def passed(position: Value, wanted: Value = wanted) -> Value:
                    return code.ir.icmp_signed("<=", code.indices(scratch, position, lanes), wanted)

                taken = code.advance(each.carried[0], passed)
                code.put_long(code.add(code.add(base, free), taken), arguments["positions"], each.index)
                each.carry([taken])

    return kernel_module(ABSENT, unit, x86=spec.isa != "neon")
