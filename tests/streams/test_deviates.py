"""Words made into numbers, against double precision; the polynomials, against the best there are."""

from __future__ import annotations

import math

import numpy as np
import polynomials
import pytest
import torch

from pollard.kernels.code.emit import deviates as steps
from pollard.streams.deviates import normal_pair, uniform

EDGES = [0, 1, 2, 255, 256, 2**24, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 257, 2**32 - 2, 2**32 - 1]


def some_words(seed):
    drawn = torch.randint(2**32, (200_000,), generator=torch.Generator().manual_seed(seed))
    return torch.cat((torch.tensor(EDGES), torch.tensor(EDGES).flip(0), drawn))


def exactly(first, second):
    """Box and Muller's pairs in double precision, of the same words."""
    # The rounding to float32 is a part of what u is; an error in u would be another number, none in the last bit.
    u = ((first >> 1).float() + 0.5).double() / 2**31
    angle = (((second << 2) & (2**32 - 1)) ^ 2**31).double() - 2**31
    angle = angle.float().double() * math.pi / 4 / 2**31
    angle = torch.where((second >> 30) & 1 == 1, math.pi / 2 - angle, angle) + math.pi * (second >> 31).double()
    return (-2 * u.log()).sqrt() * angle.cos(), (-2 * u.log()).sqrt() * angle.sin()


def test_normal_numbers_are_off_by_two_units_of_rounding_at_most():
    words = some_words(0), some_words(1)
    for made, exact in zip(normal_pair(*words), exactly(*words), strict=True):
        # Where the sine of pi is asked for, double precision has no zero.
        off = (made.double() - exact).abs() / (exact.abs() + 1e-8)
        assert off.max() <= 2 * torch.finfo(torch.float32).eps
        assert off.mean() <= torch.finfo(torch.float32).eps / 2


def test_normal_numbers_reach_as_far_as_the_words_do():
    lowest, highest = (torch.tensor([word]) for word in (0, 2**32 - 1))
    turns = torch.tensor([0, 2**30, 2**31, 3 * 2**30])
    far = math.sqrt(64 * math.log(2))
    pairs = torch.stack(normal_pair(lowest.expand(4), turns)).T
    assert pairs == pytest.approx(np.array([[far, 0], [0, far], [-far, 0], [0, -far]]), rel=1e-6)
    assert torch.stack(normal_pair(highest.expand(4), turns)).abs().max() == 0.0


def test_uniform_numbers_are_the_upper_24_bits():
    words = some_words(2)
    assert torch.equal((uniform(words).double() * 2**24).long(), words >> 8)


@pytest.mark.parametrize("name", polynomials.AIMS)
def test_no_polynomial_of_the_degree_is_much_better(name):
    aim, ours = polynomials.AIMS[name], getattr(steps, name)
    assert all(float(np.float32(coefficient)) == coefficient for coefficient in ours)
    error = polynomials.largest_error(aim, ours)
    assert error < 2.0**-24
    assert error <= 1.02 * polynomials.largest_error(aim, polynomials.fit(aim))
