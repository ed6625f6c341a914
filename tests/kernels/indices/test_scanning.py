"""Scores gone through by a kernel, against numpy: bounds, zeros of both signs, subnormal numbers, infinities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pollard.kernels.code.target import host_isas
from pollard.kernels.indices import scanning
from pollard.kernels.indices.scanning import reaching, reaching_slowly, within, within_slowly
from pollard.pruning.masks import top_positions

TINY = float(np.float32(1e-45))  # the smallest subnormal number
FEW = [-np.inf, -2.0, -2 * TINY, -TINY, -0.0, 0.0, TINY, 2 * TINY, 1.5, np.inf]
NUMBERS = st.one_of(st.sampled_from(FEW), st.floats(width=32, allow_nan=False))
SCORES = arrays(np.float32, st.integers(1, 200), elements=NUMBERS)


@pytest.fixture(params=host_isas())
def kernels(request, monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", request.param)
    monkeypatch.setattr(scanning, "FEW", 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scores=SCORES, bounds=st.tuples(NUMBERS, NUMBERS).map(sorted), threads=st.sampled_from([1, 2, 3]))
def test_the_kernel_finds_what_numpy_finds(kernels, scores, bounds, threads):
    torch.set_num_threads(threads)
    made, expected = within(scores, *bounds), within_slowly(scores, *bounds)
    assert made.inside.tobytes() == expected.inside.tobytes()
    assert made[1:] == expected[1:]
    for bound in bounds:
        for strictly in (True, False):
            flags = reaching(scores, bound, strictly=strictly)
            assert flags.dtype == np.bool_
            assert np.array_equal(flags, reaching_slowly(scores, bound, strictly=strictly))


def test_a_kernel_ran(kernels, monkeypatch):
    monkeypatch.setattr(scanning, "within_slowly", None)
    monkeypatch.setattr(scanning, "reaching_slowly", None)
    scores = np.array([3.0, 1.0, 2.0], np.float32)
    assert within(scores, 0.0, 3.0).inside.tolist() == [1.0, 2.0]
    assert reaching(scores, 2.0, strictly=False).tolist() == [True, False, True]


@pytest.mark.parametrize("count", [1, 5, 30_000, 99_999])
def test_a_ranking_tells_subnormal_numbers_apart(kernels, count):
    scores = torch.arange(100_000).roll(777).float().mul_(TINY)
    assert top_positions(scores, count).tolist() == sorted((-scores.double()).argsort(stable=True)[:count].tolist())


def test_other_numbers_are_gone_through_by_numpy(kernels):
    doubles = np.array([1.0, 1.0 + 1e-12, 2.0])
    assert reaching(doubles, 1.0, strictly=True).tolist() == [False, True, True]
    assert within(doubles, 1.0, 2.0).inside.tolist() == [1.0 + 1e-12]
    strided = np.array([1.0, 9.0, 2.0, 9.0], np.float32)[::2]
    assert reaching(strided, 1.0, strictly=True).tolist() == [False, True]
