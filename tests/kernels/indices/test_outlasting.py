"""Weights above products of a number of their row and one of their column, by a kernel, against masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.kernels.code.target import host_isas
from pollard.kernels.indices import outlasting as module
from pollard.kernels.indices.outlasting import BAND, between, between_slowly, outlasting, outlasting_slowly
from strategies import seeds

SIZES = st.tuples(st.integers(0, 5), st.integers(0, 70), st.integers(0, 3))


def operands(seed, size, bars):
    """Weights and numbers by which about half of them pass, some of which are exactly 1, or next to it."""
    rows, columns, _ = size
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=draw)
    close = torch.rand(rows, columns, generator=draw) < 0.3
    weights[close] = 1.0 + BAND * (torch.rand(int(close.sum()), generator=draw) * 4 - 2)
    a, b = (torch.rand(bars, count, generator=draw) * 2 for count in (rows, columns))
    a[torch.rand(a.shape, generator=draw) < 0.3] = 1.0
    b[torch.rand(b.shape, generator=draw) < 0.5] = 1.0
    b[torch.rand(b.shape, generator=draw) < 0.1] = 0.0
    return weights, a, b


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, size=SIZES, threads=st.sampled_from([1, 2, 3]))
def test_the_kernel_finds_what_masks_find(target, seed, size, threads):
    torch.set_num_threads(threads)
    given = operands(seed, size, size[2])
    for made, expected in zip(outlasting(*given), outlasting_slowly(*given), strict=True):
        assert torch.equal(made, expected)
    given = operands(seed, size, size[2] + 1)
    (made, above), (expected, count) = between(*given), between_slowly(*given)
    assert above == count
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("isa", host_isas())
def test_a_kernel_ran(isa, monkeypatch):
    monkeypatch.setenv("POLLARD_TARGET", isa)
    monkeypatch.setattr(module, "outlasting_slowly", None)
    monkeypatch.setattr(module, "between_slowly", None)
    weights, a, b = operands(0, (4, 40, 0), 2)
    assert len(outlasting(weights, a, b).columns)
    assert between(weights, a, b)[1]


def test_what_is_listed_for_sure_is_above_and_what_is_left_out_is_not():
    weights, a, b = operands(3, (20, 70, 0), 3)
    exact = (a.double()[:, :, None] * b.double()[:, None, :] * weights.double().abs()).amin(0)
    found = outlasting(weights, a, b)
    rows = torch.arange(20).repeat_interleave(found.counts)
    known = found.columns >= 0
    columns = torch.where(known, found.columns, ~found.columns).long()
    assert bool((exact[rows[known], columns[known]] > 1).all())
    assert 0 < int((~known).sum()) < len(known)
    left_out = torch.ones_like(exact, dtype=torch.bool)
    left_out[rows, columns] = False
    assert bool((exact[left_out] <= 1).all())
    assert torch.equal(found.values, weights[rows, columns])
