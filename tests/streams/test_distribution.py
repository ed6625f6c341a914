"""Whether the numbers are random: their laws, and that places, layers, draws and seeds know nothing of each other."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from pollard.streams import Stream

ROWS, COLUMNS = 2000, 1000
# Five standard deviations: what chance passes once in two million.
FAR = 5.0


@cache
def numbers(law):
    return getattr(Stream(20_260_101, 4), law)(0, ROWS, COLUMNS)


def test_moments_of_normal_numbers():
    z = numbers("normal").double()
    count = z.numel()
    # The mean of the n-th power of a standard normal number, and its variance.
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 6: (15, 10_170)}.items():
        assert abs(float((z**power).mean()) - mean) < FAR * math.sqrt(variance / count)


@pytest.mark.parametrize("beyond", [2.0, 3.0, 4.0])
def test_tails_of_normal_numbers(beyond):
    z = numbers("normal")
    share = stats.norm.sf(beyond)
    for side in (z, -z):
        assert abs(float((side > beyond).double().mean()) - share) < FAR * math.sqrt(share / z.numel())


@pytest.mark.parametrize("law, cdf", [("normal", stats.norm.cdf), ("uniform", stats.uniform.cdf)])
def test_the_law_of_the_numbers(law, cdf):
    assert stats.kstest(numbers(law)[:200].flatten().double().numpy(), cdf).pvalue > 1e-4
    # By word, which each have their own steps: a tile has 16 columns of each.
    for word in range(4):
        some = numbers(law)[:200, 16 * word :: 64].flatten().double().numpy()
        assert stats.kstest(some, cdf).pvalue > 1e-4


@pytest.mark.parametrize("shift", [8, 16, 24])
def test_all_bits_of_uniform_numbers_fall_alike(shift):
    bytes_ = (numbers("uniform").double() * 2**32).long() >> shift & 255
    assert stats.chisquare(torch.bincount(bytes_.flatten(), minlength=256).numpy()).pvalue > 1e-4


def test_pairs_of_uniform_numbers_fall_alike():
    u = (numbers("uniform") * 32).long()
    for across in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:]), (u[:, :-16], u[:, 16:])):
        pairs = (across[0] * 32 + across[1]).flatten()
        assert stats.chisquare(torch.bincount(pairs, minlength=1024).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_neighbours_are_not_correlated(law):
    x = numbers(law).double()
    x = (x - x.mean()) / x.std()
    for down, right in [(0, 1), (0, 15), (0, 16), (0, 32), (0, 48), (0, 64), (1, 0), (2, 0), (1, 1), (16, 0)]:
        one, other = x[down:, right:], x[: ROWS - down, : COLUMNS - right]
        for transformed in (lambda each: each, torch.square, torch.abs):
            first, second = (transformed(each) for each in (one, other))
            first, second = first - first.mean(), second - second.mean()
            correlation = (first * second).mean() / (first.std() * second.std())
            assert abs(float(correlation)) < FAR / math.sqrt(first.numel())


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_layers_draws_and_seeds_are_not_correlated(law):
    streams = [Stream(0, 0)]
    streams += [Stream(0, layer) for layer in (1, 2, 3, 2**31)]
    streams += [Stream(0, 0, draw) for draw in (1, 2, 2**31)]
    streams += [Stream(seed, 0) for seed in (1, 2, 3, 2**31, 2**32, 2**63)]
    made = np.stack([getattr(stream, law)(0, 100, 1000).flatten().double().numpy() for stream in streams])
    for transformed in (made, np.square(made - made.mean())):
        correlations = np.corrcoef(transformed) - np.eye(len(streams))
        assert np.abs(correlations).max() < FAR / math.sqrt(made.shape[1])


def test_rows_and_layers_do_not_change_places():
    # A place with two words exchanged is another place.
    one = Stream(0, 1, 2).normal(3, 4, 64)
    for other in (Stream(0, 3, 2).normal(1, 2, 64), Stream(0, 2, 1).normal(3, 4, 64), Stream(0, 1, 3).normal(2, 3, 64)):
        assert not (one == other).any()
