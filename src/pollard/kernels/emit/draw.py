"""Candidates drawn with replacement: how many each row group gets, and which of its columns, each once and in order.

The n-th random number of a key is made from n alone: any thread can make it, and one that falls otherwise moves no other.
"""

from __future__ import annotations

from llvmlite import ir

from pollard.kernels.emit.frame import Arguments, kernel_module
from pollard.kernels.emit.search import Run
from pollard.kernels.emit.tiles import run_of_groups
from pollard.kernels.simd import I64, Code, Value
from pollard.kernels.spec import KernelSpec

# Of SplitMix64 (Steele, Lea and Flood 2014): the step of its counter, and the multipliers and shifts that mix it.
STEP = 0x9E3779B97F4A7C15
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
BITS = 53  # of a random number: what doubles hold exactly
WORD = 64

# ends: the random numbers, 64-bit, below which each outcome and those before it lie. guide: the outcome of the first random
# number that begins with each of some bits: those from SHIFT on.
DEAL = ("ends", "guide", "counts", "bounds", "PASSES", "KEY", "SHIFT", "GROUPS")
# starts: where the draws of each row group begin; fresh: room for as many columns, filled from the first of each unit of work
# on; counts: how many of each row group. scratch: for each unit of work a bit for each column, in WORDS words, a multiple of 64,
# then a bit for each of these words.
DRAW = (
    "ends", "guide", "columns", "pointers", "starts", "fresh", "counts", "scratch", "bounds", "PASSES", "KEY", "SHIFT",
    "WORDS", "ROOM",
)  # fmt: skip


def deal(spec: KernelSpec) -> ir.Module:
    """The module that counts the draws of each row group; a unit of work is a run of draws, with counts of its own."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        counts = code.offset(arguments["counts"], code.mul(code.mul(work[0], arguments["GROUPS"]), 4))
        with code.loop(*run_of_groups(code, arguments, *work)) as each:
            group = _outcome(code, arguments, each.index)
            code.put_index(code.add(code.index_at(counts, group), 1), counts, group)

    return kernel_module(DEAL, unit, x86=spec.isa != "neon")


def draw(spec: KernelSpec) -> ir.Module:
    """The module that draws columns for each row group, leaves out those it keeps, and sorts; a unit is a run of rows."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        bits = code.offset(arguments["scratch"], code.mul(code.mul(work[0], arguments["ROOM"]), 8))
        words = code.offset(bits, code.mul(arguments["WORDS"], 8))
        first, last = run_of_groups(code, arguments, *work)
        with code.loop(first, last, carried=[code.index_at(arguments["starts"], first)]) as row:
            there, drawn = (Run.of(code, arguments[name], row.index) for name in ("pointers", "starts"))
            counter = code.ir.shl(row.index, I64(32))
            # Which words are in use need not be known where nearly all are.
            full = code.less(arguments["WORDS"], drawn.length(code))
            with code.ir.if_else(full) as (all_words, some_words):
                with all_words:
                    with code.loop(0, arguments["WORDS"], WORD) as word:
                        code.put_long(-1, words, code.ir.lshr(word.index, I64(6)))
                    with code.loop(0, drawn.length(code)) as each:
                        column = _outcome(code, arguments, code.add(counter, each.index))
                        _set(code, bits, code.ir.lshr(column, I64(6)), column)
                with some_words, code.loop(0, drawn.length(code)) as each:
                    column = _outcome(code, arguments, code.add(counter, each.index))
                    word = code.ir.lshr(column, I64(6))
                    _set(code, bits, word, column)
                    _set(code, words, code.ir.lshr(word, I64(6)), word)
            with code.loop(there.start, there.end) as grain:
                column = code.index_at(arguments["columns"], grain.index)
                word = code.ir.lshr(column, I64(6))
                others = code.ir.not_(_bit(code, column))
                code.put_long(code.ir.and_(code.long_at(bits, word), others), bits, word)
            end = _listed(code, arguments, (bits, words), row.carried[0])
            code.put_index(code.sub(end, row.carried[0]), arguments["counts"], row.index)
            row.carry([end])

    return kernel_module(DRAW, unit, x86=spec.isa != "neon")


def _outcome(code: Code, arguments: Arguments, counter: Value) -> Value:
    """The outcome of the random number of `counter`."""
    number = code.add(arguments["KEY"], code.mul(code.add(counter, 1), STEP))
    for shift, factor in MIXING:
        number = code.mul(code.ir.xor(number, code.ir.lshr(number, I64(shift))), factor)
    number = code.ir.lshr(number, I64(WORD - BITS))
    start = code.index_at(arguments["guide"], code.ir.lshr(number, arguments["SHIFT"]))
    ends = arguments["ends"]

    def past(place: Value) -> Value:
        return code.ir.icmp_signed("<=", code.long_at(ends, place), number)

    # Whether the first end is passed nobody can predict, that the second is not is a safe bet. The last is above all numbers.
    start = code.add(start, code.one_if(past(start)))
    with code.scan(start, code.integer(1 << 31), past) as found:
        pass
    return found.index


def _listed(code: Code, arguments: Arguments, maps: tuple[Value, Value], start: Value) -> Value:
    """Write the columns whose bits are set from `start` on, and clear all; where they end."""
    bits, words = maps
    with code.loop(0, code.ir.lshr(arguments["WORDS"], I64(6)), carried=[start]) as turn:
        filled = code.long_at(words, turn.index)
        code.put_long(0, words, turn.index)
        with code.loop(0, code.one_bits(filled), carried=[filled, turn.carried[0]]) as outer:
            word = code.add(code.mul(turn.index, WORD), code.first_bit(outer.carried[0]))
            left = code.long_at(bits, word)
            code.put_long(0, bits, word)
            with code.loop(0, code.one_bits(left), carried=[left, outer.carried[1]]) as inner:
                left, place = inner.carried
                column = code.add(code.mul(word, WORD), code.first_bit(left))
                code.put_index(column, arguments["fresh"], place)
                inner.carry([_without_first(code, left), code.add(place, 1)])
            outer.carry([_without_first(code, outer.carried[0]), inner.carried[1]])
        turn.carry([outer.carried[1]])
    return turn.carried[0]


def _bit(code: Code, index: Value) -> Value:
    return code.ir.shl(I64(1), code.ir.and_(index, I64(WORD - 1)))


def _set(code: Code, bits: Value, word: Value, index: Value) -> None:
    code.put_long(code.ir.or_(code.long_at(bits, word), _bit(code, index)), bits, word)


def _without_first(code: Code, bits: Value) -> Value:
    return code.ir.and_(bits, code.sub(bits, 1))
