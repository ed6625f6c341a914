"""Candidates drawn with replacement: which columns of each row group, each once and in order.

The n-th random number of a key is made from n alone: any thread can make it, and one that falls otherwise moves no other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.press import LANES as PRESSED
from pollard.kernels.code.emit.press import places, pressed
from pollard.kernels.code.emit.search import Run, copy_indices
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import I32, I64, Code, Value
from pollard.kernels.code.spec import KernelSpec

# Of SplitMix64 (Steele, Lea and Flood 2014): the step of its counter, and the multipliers and shifts that mix it.
STEP = 0x9E3779B97F4A7C15
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
BITS = 53  # of a random number: what doubles hold exactly
WORD = 64
LANES = 8  # random numbers made at a time

# ends: the random numbers, 64-bit, below which each outcome and those before it lie. guide: the outcome of the first random
# number that begins with each of some bits: those from SHIFT on. starts: where the draws of each row group begin; fresh:
# room for as many columns, filled from the first of each unit of work on; counts: how many of each row group. scratch: for
# each unit of work a bit for each column, in WORDS words, a multiple of 64, then a bit for each of these words, then the
# columns of a row group and one vector more.
DRAW = (
    "ends", "guide", "columns", "pointers", "starts", "fresh", "counts", "scratch", "bounds", "PASSES", "KEY", "SHIFT",
    "WORDS", "ROOM",
)  # fmt: skip


def draw(spec: KernelSpec) -> ir.Module:
    """The module that draws columns for each row group, leaves out those it keeps, and sorts; a unit is a run of rows."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        bits = code.offset(arguments["scratch"], code.mul(code.mul(work[0], arguments["ROOM"]), 8))
        words = code.offset(bits, code.mul(arguments["WORDS"], 8))
        first, last = run_of_groups(code, arguments, *work)
        with code.loop(first, last, carried=[code.index_at(arguments["starts"], first)]) as row:
            there, drawn = (Run.of(code, arguments[name], row.index) for name in ("pointers", "starts"))
            counter, turns = code.ir.shl(row.index, I64(32)), (code.integer(0), drawn.length(code))
            # Which words are in use need not be known where nearly all are.
            full = code.less(arguments["WORDS"], drawn.length(code))
            with code.ir.if_else(full) as (all_words, some_words):
                with all_words:
                    with code.loop(0, arguments["WORDS"], WORD) as word:
                        code.put_long(-1, words, code.ir.lshr(word.index, I64(6)))
                    _each_outcome(code, arguments, counter, turns, partial(_set, code, bits))
                with some_words:
                    _each_outcome(code, arguments, counter, turns, partial(_set_both, code, bits, words))
            with code.loop(there.start, there.end) as grain:
                column = code.index_at(arguments["columns"], grain.index, spec.index)
                word = code.ir.lshr(column, I64(6))
                others = code.ir.not_(_bit(code, column))
                code.put_long(code.ir.and_(code.long_at(bits, word), others), bits, word)
            end = _listed(code, spec.isa, arguments, (bits, words), row.carried[0])
            code.put_index(code.sub(end, row.carried[0]), arguments["counts"], row.index)
            row.carry([end])

    return kernel_module(DRAW, unit, x86=spec.isa != "neon")


def _each_outcome(
    code: Code, arguments: Arguments, base: Value, turns: tuple[Value, Value], use: Callable[[Value], None]
) -> None:
    """Give `use` the outcomes of the random numbers of ``base + turn``, for all `turns` from the first to the second."""
    with code.loop(turns[0], code.sub(turns[1], LANES - 1), LANES) as some:
        numbers = _numbers(code, arguments, code.add(base, some.index), LANES)
        for lane in range(LANES):
            use(_outcome(code, arguments, code.ir.extract_element(numbers, I32(lane))))
    with code.loop(some.index, turns[1]) as each:
        numbers = _numbers(code, arguments, code.add(base, each.index), 1)
        use(_outcome(code, arguments, code.ir.extract_element(numbers, I32(0))))


def _numbers(code: Code, arguments: Arguments, counter: Value, lanes: int) -> Value:
    """The random numbers of `counter` and those that follow it, 64-bit lanes."""
    kind = ir.VectorType(I64, lanes)

    def all_lanes(value: Value) -> Value:
        first = code.ir.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        return code.ir.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def constant(value: int) -> Value:
        return ir.Constant(kind, [value] * lanes)

    counters = code.ir.add(all_lanes(counter), ir.Constant(kind, list(range(1, lanes + 1))))
    numbers = code.ir.add(all_lanes(arguments["KEY"]), code.ir.mul(counters, constant(STEP)))
    for shift, factor in MIXING:
        numbers = code.ir.mul(code.ir.xor(numbers, code.ir.lshr(numbers, constant(shift))), constant(factor))
    return code.ir.lshr(numbers, constant(WORD - BITS))


def _outcome(code: Code, arguments: Arguments, number: Value) -> Value:
    """The outcome of a random number."""
    start = code.index_at(arguments["guide"], code.ir.lshr(number, arguments["SHIFT"]))
    ends = arguments["ends"]

    def past(place: Value) -> Value:
        return code.ir.icmp_signed("<=", code.long_at(ends, place), number)

    # Whether the first end is passed nobody can predict, that the second is not is a safe bet. The last is above all numbers.
    start = code.add(start, code.one_if(past(start)))
    with code.scan(start, code.integer(1 << 31), past) as found:
        pass
    return found.index


def _listed(code: Code, isa: str, arguments: Arguments, maps: tuple[Value, Value], start: Value) -> Value:
    """Write the columns whose bits are set from `start` on, and clear all; where they end."""
    bits, words = maps
    row = code.offset(words, code.mul(code.ir.lshr(arguments["WORDS"], I64(6)), 8))
    with code.loop(0, code.ir.lshr(arguments["WORDS"], I64(6)), carried=[code.integer(0)]) as turn:
        filled = code.long_at(words, turn.index)
        code.put_long(0, words, turn.index)
        with code.loop(0, code.one_bits(filled), carried=[filled, turn.carried[0]]) as outer:
            word = code.add(code.mul(turn.index, WORD), code.first_bit(outer.carried[0]))
            left = code.long_at(bits, word)
            code.put_long(0, bits, word)
            first = code.mul(word, WORD)
            end = (_pressed if isa == "avx512" else _one_by_one)(code, row, (first, left), outer.carried[1])
            outer.carry([_without_first(code, outer.carried[0]), end])
        turn.carry([outer.carried[1]])
    (count,) = turn.carried
    copy_indices(code, row, code.offset(arguments["fresh"], code.mul(start, 4)), count)
    return code.add(start, count)


def _one_by_one(code: Code, row: Value, word: tuple[Value, Value], start: Value) -> Value:
    first, bits = word
    with code.loop(0, code.one_bits(bits), carried=[bits, start]) as each:
        left, place = each.carried
        code.put_index(code.add(first, code.first_bit(left)), row, place)
        each.carry([_without_first(code, left), code.add(place, 1)])
    return each.carried[1]


def _pressed(code: Code, row: Value, word: tuple[Value, Value], start: Value) -> Value:
    # As one by one, without a branch that nobody could predict.
    first, bits = word
    for part in range(0, WORD, PRESSED):
        some = code.ir.trunc(code.ir.lshr(bits, I64(part)), ir.IntType(PRESSED))
        mask = code.ir.bitcast(some, ir.VectorType(ir.IntType(1), PRESSED))
        code.put_indices(pressed(code, places(code)(code.add(first, part), PRESSED), mask), row, start)
        start = code.add(start, code.one_bits(code.ir.zext(some, I64)))
    return start


def _bit(code: Code, index: Value) -> Value:
    return code.ir.shl(I64(1), code.ir.and_(index, I64(WORD - 1)))


def _set(code: Code, bits: Value, index: Value) -> None:
    word = code.ir.lshr(index, I64(6))
    code.put_long(code.ir.or_(code.long_at(bits, word), _bit(code, index)), bits, word)


def _set_both(code: Code, bits: Value, words: Value, index: Value) -> None:
    _set(code, bits, index)
    _set(code, words, code.ir.lshr(index, I64(6)))


def _without_first(code: Code, bits: Value) -> Value:
    return code.ir.and_(bits, code.sub(bits, 1))
