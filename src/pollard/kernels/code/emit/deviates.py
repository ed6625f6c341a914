"""Random words made into numbers: uniform ones, and pairs of normal ones (Box and Muller 1958).

Every step is one that IEEE 754 defines to the bit: products and sums of their own, square roots, conversions from integers. So
plain torch and every instruction set make the same bits of the same words. `scripts/polynomials.py` makes the coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence

from pollard.kernels.code.simd import F32, I32, Code, Value, each, vector

UNIFORM_SHIFT, UNIFORM_UNIT = 8, 2.0**-24  # 24 bits: what float32 holds exactly, from 0 to below 1
# The first word of a pair, less one bit that integers with a sign have no room for, and a half: above 0, and at most 2**31.
RADIUS_SHIFT, RADIUS_BITS, HALF = 1, 31, 0.5
# ln v = (e + 31) ln 2 + ln m, where m is from sqrt(1/2) to sqrt(2): so much lies between the bits of v and of a small e.
ROOT_HALF = 0x3F3504F3
FRACTION_BITS = 23
FRACTION = (1 << FRACTION_BITS) - 1
EXPONENT_START = ROOT_HALF + (RADIUS_BITS << FRACTION_BITS)
LOG_TWO = -1.3862943649291992  # -2 ln 2
# -2 ln(1 + f) / f in powers of f, from sqrt(1/2) - 1 to sqrt(2) - 1.
LOG = (
    -2.0, 0.9999998211860657, -0.6666789054870605, 0.5000355243682861, -0.3992447853088379, 0.33140623569488525,
    -0.2983270585536957, 0.2861548364162445, -0.17477664351463318,
)  # fmt: skip
# The second word of a pair: the top bit turns half a circle, the next changes sine and cosine, the rest is an angle up to pi/4
# to both sides. sin(pi/4 x) / x and cos(pi/4 x) in powers of x**2, x from -1 to 1.
ANGLE_SHIFT, ANGLE_UNIT = 2, 2.0**-31
SINE = (0.7853981852531433, -0.08074583113193512, 0.0024910164065659046, -3.660915535874665e-05)
COSINE = (1.0, -0.3084251284599304, 0.015854284167289734, -0.00032586869201622903, 3.4940874229505425e-06)


def uniform(code: Code, word: Value) -> Value:
    """``(word >> 8) / 2**24`` of each 32-bit lane."""
    lanes = int(word.type.count)
    number = code.ir.sitofp(code.ir.lshr(word, each(I32(UNIFORM_SHIFT), lanes)), vector(lanes))
    return code.ir.fmul(number, each(F32(UNIFORM_UNIT), lanes))


def normal_pair(code: Code, words: tuple[Value, Value]) -> tuple[Value, Value]:
    """Two independent standard normal numbers from each lane of two vectors of 32-bit words."""
    lanes = int(words[0].type.count)
    radius = _radius(code, words[0])
    # The sign of both, by the top bit.
    sign = code.ir.and_(words[1], each(I32(-(1 << 31)), lanes))
    radius = code.ir.bitcast(code.ir.xor(code.ir.bitcast(radius, sign.type), sign), vector(lanes))
    sine, cosine = _sine_and_cosine(code, code.ir.shl(words[1], each(I32(ANGLE_SHIFT), lanes)))
    swapped = code.ir.icmp_signed("<", code.ir.shl(words[1], each(I32(1), lanes)), each(I32(0), lanes))
    first, second = code.ir.select(swapped, sine, cosine), code.ir.select(swapped, cosine, sine)
    return code.ir.fmul(radius, first), code.ir.fmul(radius, second)


def _radius(code: Code, word: Value) -> Value:
    """``sqrt(-2 ln u)``, u from 2**-32 to 1."""
    lanes, build = int(word.type.count), code.ir
    number = build.sitofp(build.lshr(word, each(I32(RADIUS_SHIFT), lanes)), vector(lanes))
    bits = build.bitcast(build.fadd(number, each(F32(HALF), lanes)), word.type)
    bits = build.sub(bits, each(I32(EXPONENT_START), lanes))
    exponent = build.sitofp(build.ashr(bits, each(I32(FRACTION_BITS), lanes)), vector(lanes))
    fraction = build.add(build.and_(bits, each(I32(FRACTION), lanes)), each(I32(ROOT_HALF), lanes))
    rest = build.fsub(build.bitcast(fraction, vector(lanes)), each(F32(1.0), lanes))
    # The first term is exact, and even and odd powers of the rest apart: half as many steps wait for each other.
    square = build.fmul(rest, rest)
    even, odd = (_polynomial(code, LOG[first::2], square) for first in (1, 2))
    curve = build.fmul(build.fadd(build.fmul(odd, rest), even), square)
    logarithm = build.fadd(curve, build.fmul(rest, each(F32(LOG[0]), lanes)))
    logarithm = build.fadd(logarithm, build.fmul(exponent, each(F32(LOG_TWO), lanes)))
    return code.call(f"llvm.sqrt.v{lanes}f32", vector(lanes), [logarithm])


def _sine_and_cosine(code: Code, bits: Value) -> tuple[Value, Value]:
    lanes = int(bits.type.count)
    angle = code.ir.fmul(code.ir.sitofp(bits, vector(lanes)), each(F32(ANGLE_UNIT), lanes))
    square = code.ir.fmul(angle, angle)
    return code.ir.fmul(_polynomial(code, SINE, square), angle), _polynomial(code, COSINE, square)


def _polynomial(code: Code, coefficients: Sequence[float], at: Value) -> Value:
    lanes = int(at.type.count)
    total = each(F32(coefficients[-1]), lanes)
    for coefficient in reversed(coefficients[:-1]):
        total = code.ir.fadd(code.ir.fmul(total, at), each(F32(coefficient), lanes))
    return total
