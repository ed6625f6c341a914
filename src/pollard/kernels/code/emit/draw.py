"""Candidates drawn with replacement: which columns of each row group, each once and in order.

Random numbers are those of a stream, by row group and turn: any thread can make them, and one that falls otherwise moves no other.
Turn ``16 q + 8 h + l`` has words 2 h and 2 h + 1 of the counter ``(8 q + l, row group, 0, 0)``, the upper 53 bits of both together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llvmlite import ir

from pollard.kernels.code.emit.frame import Arguments, kernel_module
from pollard.kernels.code.emit.philox import LOW, words
from pollard.kernels.code.emit.press import LANES as PRESSED
from pollard.kernels.code.emit.press import places, pressed
from pollard.kernels.code.emit.search import Run, copy_indices
from pollard.kernels.code.emit.tiles import run_of_groups
from pollard.kernels.code.simd import I64, Code, Value, each
from pollard.kernels.code.spec import KernelSpec

BITS = 53  # of a random number: what doubles hold exactly
WORD = 64
LANES = 8  # counters at a time
PAIRS = 2  # random numbers of each
TURNS = LANES * PAIRS

# ends: the random numbers, 64-bit, below which each outcome and those before it lie. guide: the outcome of the first random
# number that begins with each of some bits: those from SHIFT on. starts: where the draws of each row group begin; fresh:
# room for as many columns, filled from the first of each unit of work on; counts: how many of each row group. scratch: for
# each unit of work a bit for each column, in WORDS words, a multiple of 64, then a bit for each of these words, then the
# columns of a row group and one vector more.
DRAW = (
    "ends", "guide", "columns", "pointers", "starts", "fresh", "counts", "scratch", "bounds", "PASSES", "SEED", "SHIFT",
    "WORDS", "ROOM",
)  # fmt: skip


def draw(spec: KernelSpec) -> ir.Module:
    """The module that draws columns for each row group, leaves out those it keeps, and sorts; a unit is a run of rows."""

    def unit(code: Code, arguments: Arguments, work: tuple[Value, Value]) -> None:
        numbers = code.room(8 * TURNS)
        bits = code.offset(arguments["scratch"], code.mul(code.mul(work[0], arguments["ROOM"]), 8))
        words = code.offset(bits, code.mul(arguments["WORDS"], 8))
        first, last = run_of_groups(code, arguments, *work)
        with code.loop(first, last, carried=[code.index_at(arguments["starts"], first)]) as row:
            there, drawn = (Run.of(code, arguments[name], row.index) for name in ("pointers", "starts"))
            draws = row.index, drawn.length(code), numbers
            # Which words are in use need not be known where nearly all are.
            full = code.less(arguments["WORDS"], draws[1])
            with code.ir.if_else(full) as (all_words, some_words):
                with all_words:
                    with code.loop(0, arguments["WORDS"], WORD) as word:
                        code.put_long(-1, words, code.ir.lshr(word.index, I64(6)))
                    _each_outcome(code, arguments, draws, partial(_set, code, bits))
                with some_words:
                    _each_outcome(code, arguments, draws, partial(_set_both, code, bits, words))
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
    code: Code, arguments: Arguments, draws: tuple[Value, Value, Value], use: Callable[[Value], None]
) -> None:
    """Give `use` the outcomes of so many draws of a row group; the last of the three is room for random numbers."""
    row, count, room = draws
    with code.loop(0, count, TURNS) as some:
        for place, numbers in enumerate(_numbers(code, arguments, row, some.index)):
            code.store(numbers, code.offset(room, 8 * LANES * place))
        left = code.sub(count, some.index)
        with code.ir.if_else(code.less(left, TURNS)) as (few, all_turns):
            with few, code.loop(0, left) as turn:
                use(_outcome(code, arguments, code.long_at(room, turn.index)))
            with all_turns:
                for number in range(TURNS):
                    use(_outcome(code, arguments, code.long_at(room, number)))


def _numbers(code: Code, arguments: Arguments, row: Value, turn: Value) -> list[Value]:
    """The random numbers of TURNS turns of a row group, 64-bit lanes."""
    first = code.splat(code.ir.lshr(turn, I64(PAIRS.bit_length() - 1)), LANES)
    counters = code.ir.add(first, ir.Constant(ir.VectorType(I64, LANES), list(range(LANES))))
    zero = each(I64(0), LANES)
    (made,) = words(code, [(counters, code.splat(row, LANES), zero, zero)], arguments["SEED"])
    upper = (code.ir.shl(word, each(I64(WORD // 2), LANES)) for word in made[::2])
    lower = (code.ir.and_(word, each(I64(LOW), LANES)) for word in made[1::2])
    return [code.ir.lshr(code.ir.or_(*pair), each(I64(WORD - BITS), LANES)) for pair in zip(upper, lower, strict=True)]


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
            outer.carry([code.without_first_bit(outer.carried[0]), end])
        turn.carry([outer.carried[1]])
    (count,) = turn.carried
    copy_indices(code, row, code.offset(arguments["fresh"], code.mul(start, 4)), count)
    return code.add(start, count)


def _one_by_one(code: Code, row: Value, word: tuple[Value, Value], start: Value) -> Value:
    first, bits = word
    with code.each_bit(bits, start) as (bit, place):
        code.put_index(code.add(first, bit), row, place)
    return place


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
