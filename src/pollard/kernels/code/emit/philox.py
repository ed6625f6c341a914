"""Philox4x32-10 in vectors: four words of 32 random bits from a counter of four words and a key of two.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A round is two products of 32 by 32
bits, whose halves change places: in 64-bit lanes each is one instruction, and nothing moves between lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from pollard.kernels.code.simd import I32, I64, Code, Value, each

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the halves of the key grow by from round to round
WORD = 32
LOW = (1 << WORD) - 1


def words(code: Code, counters: Sequence[Sequence[Value]], seed: Value) -> list[list[Value]]:
    """The four random words of each lane of each of `counters`, vectors of 64-bit lanes, under the 64 bits of `seed`.

    Of the lanes of both the lower 32 bits count; the upper ones hold anything. Several counters go through the rounds side by
    side: in one alone each step waits for the one before.
    """
    made, keys = [list(counter) for counter in counters], [seed, code.ir.lshr(seed, I64(WORD))]
    for _ in range(ROUNDS):
        made = [_round(code, state, keys) for state in made]
        keys = [code.add(key, step) for key, step in zip(keys, WEYL, strict=True)]
    return made


def _round(code: Code, state: Sequence[Value], keys: Sequence[Value]) -> list[Value]:
    first, second, third, fourth = state
    lanes = int(first.type.count)
    products = [_product(code, word, by) for word, by in zip((first, third), MULTIPLIERS, strict=True)]
    high = [_upper(code, product) for product in products]
    mixed = [
        code.ir.xor(code.ir.xor(above, word), code.splat(key, lanes))
        for above, word, key in zip(reversed(high), (second, fourth), keys, strict=True)
    ]
    return [mixed[0], products[1], mixed[1], products[0]]


def _upper(code: Code, words: Value) -> Value:
    # Moved, not shifted: what shifts is, on many CPUs, what multiplies.
    halves = code.ir.bitcast(words, ir.VectorType(I32, 2 * int(words.type.count)))
    return code.ir.bitcast(code.shuffle(halves, halves, [lane | 1 for lane in range(halves.type.count)]), words.type)


def _product(code: Code, words: Value, by: int) -> Value:
    lanes = int(words.type.count)
    return code.ir.mul(code.ir.and_(words, each(I64(LOW), lanes)), each(I64(by), lanes))
