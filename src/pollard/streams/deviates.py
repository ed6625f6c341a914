"""Random words made into numbers in plain torch, step by step as kernels do it, so that every bit is the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pollard.kernels.code.emit import deviates as steps
from pollard.kernels.code.emit.philox import LOW


def uniform(word: Tensor) -> Tensor:
    """``(word >> 8) / 2**24``, float32, of words of 32 bits in int64: from 0 to below 1.

    >>> uniform(torch.tensor([0, 2**31, 2**32 - 1]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return _number(word >> steps.UNIFORM_SHIFT) * steps.UNIFORM_UNIT


def normal_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """``(r cos a, r sin a)``, float32, of pairs of words of 32 bits in int64: independent standard normal numbers.

    r = sqrt(-2 ln u), u = ((first >> 1) + 1/2) / 2**31, and a goes round the circle with the second word, by its bits (Box and
    Muller 1958): the top one adds pi, the next reflects at pi/4, the others are an angle from -pi/4 to pi/4.

    >>> normal_pair(torch.tensor([2**31 - 1]), torch.tensor([0]))
    (tensor([1.1774]), tensor([0.]))
    """
    sine, cosine = _sine_and_cosine((second << steps.ANGLE_SHIFT) & LOW)
    radius = _radius(first)
    radius = torch.where(second >> 31 == 1, -radius, radius)
    reflected = (second >> 30) & 1 == 1
    return radius * torch.where(reflected, sine, cosine), radius * torch.where(reflected, cosine, sine)


def _radius(word: Tensor) -> Tensor:
    bits = (_number(word >> steps.RADIUS_SHIFT) + steps.HALF).view(torch.int32) - steps.EXPONENT_START
    exponent = (bits >> steps.FRACTION_BITS).to(torch.float32)
    rest = ((bits & steps.FRACTION) + steps.ROOT_HALF).view(torch.float32) - 1.0
    square = rest * rest
    even, odd = (_polynomial(steps.LOG[start::2], square) for start in (1, 2))
    logarithm = (odd * rest + even) * square + rest * steps.LOG[0] + exponent * steps.LOG_TWO
    # Torch's root of float32 is off by a unit at times; that of a double, rounded, is the one that IEEE 754 asks for.
    return logarithm.double().sqrt().to(torch.float32)


def _sine_and_cosine(bits: Tensor) -> tuple[Tensor, Tensor]:
    # As an integer with a sign.
    angle = _number(bits - ((bits >> 31) << 32)) * steps.ANGLE_UNIT
    square = angle * angle
    return _polynomial(steps.SINE, square) * angle, _polynomial(steps.COSINE, square)


def _polynomial(coefficients: Sequence[float], at: Tensor) -> Tensor:
    total = torch.full_like(at, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * at + coefficient
    return total


def _number(integer: Tensor) -> Tensor:
    # From 32 bits, which every device rounds once.
    return integer.to(torch.int32).to(torch.float32)
