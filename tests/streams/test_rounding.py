"""Rounding at random: right on average, exact where it can be, and the same bits by a kernel and in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput
from pollard.kernels.code.emit.round import AT_ONCE, BLOCK, PART
from pollard.streams import rounding
from pollard.streams.rounding import round_stochastically
from strategies import seeds


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slowly(x, seed):
    """Some numbers at a time, in plain torch."""
    found = torch.empty(x.shape, dtype=torch.bfloat16)
    for first in range(0, len(x), 2 * BLOCK):
        rounding._slowly(x[first : first + 2 * BLOCK], found[first : first + 2 * BLOCK], first, seed)
    return found


@given(st.integers(0, 3 * AT_ONCE), seeds, st.integers(-(1 << 63), (1 << 64) - 1))
def test_a_kernel_and_plain_torch_make_the_same_bits_of_any_bits(count, numbers, seed):
    draw = torch.Generator().manual_seed(numbers)
    x = torch.randint(-(1 << 31), 1 << 31, (count,), generator=draw, dtype=torch.int32).view(torch.float32)
    assert torch.equal(round_stochastically(x, seed).view(torch.int16), slowly(x, seed).view(torch.int16))


@pytest.mark.parametrize("count", [PART - 1, PART, PART + 1, 3 * PART + 70])
def test_a_number_is_rounded_alike_by_any_number_of_threads_and_whatever_follows(count):
    x, before = made(count), torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(round_stochastically(x, 5))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], slowly(x, 5))
    assert torch.equal(round_stochastically(x[:1000], 5), found[0][:1000])
    assert not torch.equal(round_stochastically(x, 6), found[0])


def test_without_kernels_it_is_the_same(monkeypatch):
    x = made(5000)
    found = round_stochastically(x, 1)
    monkeypatch.setenv("POLLARD_TARGET", "reference")
    monkeypatch.setattr(rounding, "SOME", 2 * BLOCK)
    assert torch.equal(round_stochastically(x, 1), found)


def test_the_mean_is_exact_and_each_is_a_neighbour():
    x = made(50).repeat_interleave(4000)
    found = round_stochastically(x, 0).float()
    gap = 2.0 ** (x.abs().log2().floor() - 7)
    assert ((found - x).abs() < gap).all()
    error = (found - x).div(gap).view(50, 4000).mean(1)
    assert error.abs().max() < 5 * 0.5 / math.sqrt(4000)


def test_numbers_side_by_side_are_rounded_independently():
    halfway = torch.full((64 * 4000,), 1 + 2**-8)
    ups = (round_stochastically(halfway, 0) > 1).float().view(4000, 64) - 0.5
    # Of 64 places of a block, each with each: a correlation of 4000 coins is 0.016 to both sides.
    related = (ups.t() @ ups / len(ups) * 4).fill_diagonal_(0)
    assert related.abs().max() < 5.5 / math.sqrt(4000)


def test_what_bfloat16_holds_stays_and_so_does_what_is_not_finite():
    x = torch.tensor([0.0, -0.0, 1.5, -3.0, math.inf, -math.inf, math.nan, 2.0**-130]).repeat(1000)
    found = round_stochastically(x, 0)
    torch.testing.assert_close(found.float(), x, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(found), torch.signbit(x))
    every_bit = torch.tensor([-1, 2**31 - 1], dtype=torch.int32).view(torch.float32).repeat(1000)
    assert round_stochastically(every_bit, 0).isnan().all()


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5)])
def test_any_shape_and_any_strides(shape):
    x = made(*shape).to(torch.bfloat16).float()
    assert torch.equal(round_stochastically(x, 0), x.to(torch.bfloat16))
    assert torch.equal(round_stochastically(x.t(), 0), x.t().to(torch.bfloat16))


def test_other_numbers_than_float32_are_refused():
    with pytest.raises(InvalidInput, match=r"torch.float64 to round"):
        round_stochastically(torch.ones(2, dtype=torch.float64), 0)
