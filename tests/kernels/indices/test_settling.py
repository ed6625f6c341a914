"""Numbers made distinct and ascending: the kernels against the twin that sorts them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollard.formats.sampling import sample
from pollard.kernels.indices.settling import distinct


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), total=st.integers(1, 5000), kind=st.sampled_from([np.int32, np.int64]))
def test_numbers_come_once_each_and_in_order(target, data, total, kind):
    numbers = np.array(data.draw(st.lists(st.integers(0, total - 1), max_size=200)), kind)
    made = distinct(numbers.copy(), total)
    assert made.dtype == kind
    assert np.array_equal(made, np.unique(numbers))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("total", [90_000, 3_000_001, 10**8, 10**12])
def test_a_sample_is_the_same_either_way_for_any_number_of_threads(target, threads, total):
    torch.set_num_threads(threads)
    slow, fast = (sample(total, 40_000, torch.Generator().manual_seed(3), *how) for how in ((), (distinct,)))
    assert fast.dtype == slow.dtype
    assert np.array_equal(fast, slow)
