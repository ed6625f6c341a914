"""What a finished sum goes through before it is stored: every number by itself, so that its bits depend on nothing else.

GELU and SiLU are products of x and a number between 0 and 1, which for negative x is made of ``2**-y`` and no difference: small results
are as exact as large ones. Where results are rounded to bfloat16, shorter polynomials serve: with one rounding more, no result is off by more than
0.51 units of it. `scripts/polynomials.py` makes the coefficients; tests hold the errors against double precision.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from llvmlite import ir

from pollard.kernels.code.simd import F32, I32, Code, Value, vector

ABREAST = 4  # vectors whose code is written out: they wait for each other's steps, and more would only be more code
# 2**r, r from -1/2 to 1/2, in powers of r.
POWER = (
    1.0, 0.6931471824645996, 0.24022647738456726, 0.05550359934568405, 0.009618505835533142, 0.0013390806270763278,
    0.00015326461289077997,
)  # fmt: skip
SHORT_POWER = (1.0, 0.6931241750717163, 0.2402409464120865, 0.0559065118432045, 0.009583037346601486)
LEAST = -125.0  # below it 2**y counts as 0: a normal number times a fraction has to be one
# 1 - Phi(t) = exp(-t**2 / 2) u S(w) with u = 1 / (t + 2) and w = (t - 2) / (t + 2): S in powers of w, t from 0 to 13.2.
MIDDLE = 2.0
TAIL = (
    0.6724079847335815, -0.33140429854393005, 0.028799382969737053, 0.03671484440565109, -0.000495010637678206,
    -0.006707888562232256, -0.0018382550915703177, 0.0007820340688340366, 0.0006205891259014606, 0.00010994515469064936,
)  # fmt: skip
# log2(1 - Phi(t)) in powers of t / LOG_MIDDLE - 1: the largest error, 3e-5, is one of 2e-5 in what it is the exponent of.
LOG_MIDDLE = 6.6
LOG_TAIL = (
    -35.501487731933594, -64.22679138183594, -30.78603172302246, -0.37731456756591797, 0.25616490840911865, -0.16259819269180298,
    0.06546113640069962, -0.059550244361162186, 0.09387845546007156, -0.045730818063020706,
)  # fmt: skip
# Where 2**-y is 0 in any case.
GELU_END, TANH_END, SILU_END = 14.0, 11.0, 128.0
# gelu_tanh is x sigmoid(2 sqrt(2 / pi) (x + CUBIC x**3)), as it was published and as torch has it.
CUBIC = 0.044715


def activated(code: Code, activation: str, sums: Sequence[Value], numbers: str) -> list[Value]:
    """What the activation makes of each of `sums`, vectors of float32 or numbers alone, which is rounded to `numbers`; "": what they are."""
    if not activation:
        return list(sums)
    make, lanes = (_SHORT if numbers == "bfloat16" else _MAKERS)[activation], code.lanes_of(sums[0])
    if activation == "relu" or len(sums) <= ABREAST:
        return [make(code, each) for each in sums]
    # Written out for every sum, it would be more code than all the rest, and fill the cache of instructions.
    room, width = code.room(4 * lanes * len(sums)), max(part for part in range(1, ABREAST + 1) if len(sums) % part == 0)
    for place, each in enumerate(sums):
        code.store(each, code.floats(room, place * lanes))
    with code.loop(0, len(sums), width) as few:
        places = [code.floats(room, code.mul(code.add(few.index, each), lanes)) for each in range(width)]
        for place, value in [(place, code.load(place, lanes)) for place in places]:
            code.store(make(code, value), place)
    return [code.load(code.floats(room, place * lanes), lanes) for place in range(len(sums))]


def _relu(code: Code, x: Value) -> Value:
    """max(x, 0), NaN kept."""
    zero = code.zero(code.lanes_of(x))
    return code.ir.select(code.ir.fcmp_ordered("<", x, zero), zero, x)


def _gelu(code: Code, x: Value) -> Value:
    """``x Phi(x)``."""
    build, each = code.ir, _Each(code, x)
    t = each.size(GELU_END)
    square = build.fmul(t, t)
    rest = code.fma(t, t, build.fneg(square))
    power = _power(code, *_times(code, square, rest, -0.5 * math.log2(math.e)))
    u = build.fdiv(each(1.0), build.fadd(t, each(MIDDLE)))
    w = code.fma(u, each(-2 * MIDDLE), each(1.0))
    tail = build.fmul(build.fmul(_polynomial(code, TAIL, w), u), power)
    return build.fmul(x, build.select(each.positive(), build.fsub(each(1.0), tail), tail))


def _silu(code: Code, x: Value) -> Value:
    """``x sigmoid(x)``."""
    each = _Each(code, x)
    return _sigmoid(code, x, *_times(code, each.size(SILU_END), each(0.0), -math.log2(math.e)))


def _gelu_tanh(code: Code, x: Value) -> Value:
    """``x (1 + tanh(z)) / 2 = x sigmoid(2 z)``, ``z = sqrt(2 / pi) (x + CUBIC x**3)``."""
    build, each = code.ir, _Each(code, x)
    linear = -2 * math.sqrt(2 / math.pi) * math.log2(math.e)
    (one, one_rest), (three, three_rest) = _two_parts(linear), _two_parts(linear * CUBIC)
    t = each.size(TANH_END)
    square = build.fmul(t, t)
    square_rest = code.fma(t, t, build.fneg(square))
    # linear + cubic t**2, and what its roundings lost: of the product, and of the sum, whichever of the two is larger.
    product = build.fmul(square, each(three))
    slope = code.fma(square, each(three), each(one))
    first = build.fsub(product, build.fsub(slope, each(one)))
    second = build.fsub(each(one), build.fsub(slope, product))
    lost = build.select(build.fcmp_ordered("<", square, each(1 / CUBIC)), first, second)
    lost = build.fadd(lost, code.fma(square, each(three), build.fneg(product)))
    lost = build.fadd(lost, code.fma(square_rest, each(three), code.fma(square, each(three_rest), each(one_rest))))
    whole = build.fmul(t, slope)
    rest = code.fma(t, lost, code.fma(t, slope, build.fneg(whole)))
    return _sigmoid(code, x, whole, rest)


def _short_gelu(code: Code, x: Value) -> Value:
    """``x Phi(x)``, the smaller of Phi(x) and 1 - Phi(x) as a power of two."""
    build, each = code.ir, _Each(code, x)
    place = code.fma(each.size(2 * LOG_MIDDLE), each(1 / LOG_MIDDLE), each(-1.0))
    tail = _power(code, _polynomial(code, LOG_TAIL, place), None)
    return build.fmul(x, build.select(each.positive(), build.fsub(each(1.0), tail), tail))


def _short_silu(code: Code, x: Value) -> Value:
    each = _Each(code, x)
    return _sigmoid(code, x, code.ir.fmul(each.size(SILU_END), each(-math.log2(math.e))), None)


def _short_gelu_tanh(code: Code, x: Value) -> Value:
    each, linear = _Each(code, x), -2 * math.sqrt(2 / math.pi) * math.log2(math.e)
    t = each.size(TANH_END)
    slope = code.fma(code.ir.fmul(t, t), each(linear * CUBIC), each(linear))
    return _sigmoid(code, x, code.ir.fmul(t, slope), None)


_MAKERS: dict[str, Callable[[Code, Value], Value]] = {
    "gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": _relu, "silu": _silu
}  # fmt: skip
_SHORT = {"gelu": _short_gelu, "gelu_tanh": _short_gelu_tanh, "relu": _relu, "silu": _short_silu}


class _Each:
    """A number in every lane of what is like `x`; and `x`, as functions of its size want it."""

    def __init__(self, code: Code, x: Value) -> None:
        self.code, self.x, self.lanes = code, x, code.lanes_of(x)

    def __call__(self, number: float) -> Value:
        return (
            ir.Constant(F32, number) if self.lanes == 1 else ir.Constant(vector(self.lanes), [F32(number)] * self.lanes)
        )

    def size(self, end: float) -> Value:
        """|x|, at most `end`; `end` where it is NaN."""
        suffix = "f32" if self.lanes == 1 else f"v{self.lanes}f32"
        size = self.code.call(f"llvm.fabs.{suffix}", self.x.type, [self.x])
        return self.code.ir.select(self.code.ir.fcmp_ordered("<", size, self(end)), size, self(end))

    def positive(self) -> Value:
        """Where x is above 0."""
        return self.code.ir.fcmp_ordered(">", self.x, self(0.0))


def _sigmoid(code: Code, x: Value, whole: Value, rest: Value | None) -> Value:
    """``x / (1 + 2**y)`` where x is positive, ``x 2**y / (1 + 2**y)`` elsewhere, y = whole + rest <= 0, if there is a rest."""
    build, each = code.ir, _Each(code, x)
    power = _power(code, whole, rest)
    above = build.select(each.positive(), x, build.fmul(x, power))
    return build.fdiv(above, build.fadd(each(1.0), power))


def _power(code: Code, whole: Value, rest: Value | None) -> Value:
    """``2**(whole + rest)``, from -1000 to 0, where `rest` is what `whole` was rounded by; 0 below 2**LEAST. Without one, as exact as bfloat16 wants it."""
    build, each = code.ir, _Each(code, whole)
    suffix = "f32" if each.lanes == 1 else f"v{each.lanes}f32"
    near = code.call(f"llvm.nearbyint.{suffix}", whole.type, [whole])
    small = build.fsub(whole, near)
    made = _polynomial(code, SHORT_POWER, small) if rest is None else _polynomial(code, POWER, build.fadd(small, rest))
    kind = I32 if each.lanes == 1 else ir.VectorType(I32, each.lanes)
    places = ir.Constant(I32, 23) if each.lanes == 1 else ir.Constant(kind, [23] * each.lanes)
    bits = build.add(build.bitcast(made, kind), build.shl(build.fptosi(near, kind), places))
    return build.select(build.fcmp_ordered("<", whole, each(LEAST)), each(0.0), build.bitcast(bits, whole.type))


def _times(code: Code, factor: Value, factor_rest: Value, constant: float) -> tuple[Value, Value]:
    """``(factor + factor_rest) constant``, rounded, and what that lost."""
    each, (high, low) = _Each(code, factor), _two_parts(constant)
    whole = code.ir.fmul(factor, each(high))
    rest = code.fma(factor, each(low), code.fma(factor, each(high), code.ir.fneg(whole)))
    return whole, code.fma(factor_rest, each(high), rest)


def _two_parts(number: float) -> tuple[float, float]:
    """`number` as float32, and what that lost of it."""
    high = _float32(number)
    return high, _float32(number - high)


def _float32(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


def _polynomial(code: Code, coefficients: Sequence[float], at: Value) -> Value:
    each = _Each(code, at)
    total = each(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = code.fma(total, at, each(coefficient))
    return total


__all__ = ["activated"]
