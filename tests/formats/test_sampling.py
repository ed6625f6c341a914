from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput, TopologyError
from pollard.formats import sampling
from pollard.formats.sampling import sample, sample_absent
from strategies import seeds


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.data(), seeds)
def test_a_sample_is_exact_distinct_ascending_and_in_range(data, seed):
    total = data.draw(st.one_of(st.integers(0, 2**62), st.sampled_from([2**16, 2**16 + 1, 2**28, 2**28 + 1, 2**62])))
    count = data.draw(st.integers(0, min(total // 2, 5000)))
    chosen = sample(total, count, seeded(seed))
    assert chosen.shape == (count,)
    assert (np.diff(chosen) > 0).all()
    assert not count or (chosen[0] >= 0 and chosen[-1] < total)
    assert np.array_equal(chosen, sample(total, count, seeded(seed)))


@pytest.mark.parametrize("total", [100_000, 3 * 2**60])
def test_every_part_of_the_range_is_as_likely(total):
    # 20,000 into 10 tenths: 2,000 each, standard deviation below 45.
    tenths = Counter((sample(total, 20_000, seeded(1)).astype(object) * 10 // total).tolist())
    assert all(abs(tenths[tenth] - 2000) < 200 for tenth in range(10))


def test_every_subset_is_as_likely(monkeypatch):
    # The path for large totals, made to run on one small enough to count all its outcomes: 10 pairs out of 5.
    monkeypatch.setattr(sampling, "_SMALL", 4)
    monkeypatch.setattr(
        sampling, "_distinct", lambda total, count, generator, settle: drawn(total, count + 1, generator)
    )
    generator = seeded(2)
    pairs = Counter(tuple(sample(5, 2, generator).tolist()) for _ in range(5000))
    assert len(pairs) == 10
    assert all(abs(times - 500) < 110 for times in pairs.values())  # standard deviation 21


def drawn(total: int, draws: int, generator: torch.Generator) -> np.ndarray:
    return np.unique(torch.randint(total, (draws,), generator=generator).numpy())


def test_too_few_distinct_draws_are_drawn_again(monkeypatch):
    tries = []

    def distinct(total, count, generator, settle):
        tries.append(count)
        return np.arange(count - 1 if len(tries) == 1 else count)

    monkeypatch.setattr(sampling, "_distinct", distinct)
    assert len(sample(10**6, 100)) == 100
    assert tries == [100, 100]


@given(st.data(), seeds)
def test_what_is_absent_is_sampled_exactly(data, seed):
    total = data.draw(st.one_of(st.integers(0, 300), st.just(2**62)))
    present = sample(total, data.draw(st.integers(0, min(total, 300)) if total <= 300 else st.just(9)))
    count = data.draw(st.integers(0, min(total - len(present), 300)))
    chosen = sample_absent(total, present, count, seeded(seed))
    assert chosen.dtype == np.int64
    assert chosen.shape == (count,)
    assert (np.diff(chosen) > 0).all()
    assert not count or (chosen[0] >= 0 and chosen[-1] < total)
    assert not set(chosen.tolist()) & set(present.tolist())
    assert np.array_equal(chosen, sample_absent(total, present, count, seeded(seed)))


def test_every_absent_integer_is_as_likely():
    present, generator = np.array([0, 3, 4, 8]), seeded(3)
    pairs = Counter(tuple(sample_absent(9, present, 2, generator).tolist()) for _ in range(5000))
    assert len(pairs) == 10
    assert set(sum(pairs, ())) == {1, 2, 5, 6, 7}
    assert all(abs(times - 500) < 130 for times in pairs.values())  # standard deviation 21


def test_more_than_half_of_what_is_absent_can_be_sampled():
    present = np.arange(0, 300_000, 3)
    chosen = sample_absent(300_000, present, 150_000, seeded(0))
    assert len(np.unique(chosen)) == 150_000
    assert (chosen % 3).all()
    assert sample_absent(300_000, present, 200_000).tolist() == [n for n in range(300_000) if n % 3]


@pytest.mark.parametrize("count", [-1, 3])
def test_no_more_is_sampled_than_is_absent(count):
    with pytest.raises(InvalidInput, match=f"a sample of {count} out of 2 absent"):
        sample_absent(4, np.array([0, 2]), count)


@pytest.mark.parametrize("present", [[2, 1], [1, 1], [-1], [4]])
def test_what_is_present_must_ascend_within_the_range(present):
    with pytest.raises(TopologyError, match="present"):
        sample_absent(4, np.array(present), 1)
