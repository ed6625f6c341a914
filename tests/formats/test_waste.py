from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import InvalidInput, PatternError
from pollard.formats.waste import expected_waste_factor, waste_factor
from strategies import grains, seeds


@pytest.mark.parametrize("density, pattern, factor", [(0.1, "v4", 3.44), (0.1, "v8", 5.70), (0.02, "v4", 3.88)])
def test_expected_waste_has_the_known_values(density, pattern, factor):
    assert expected_waste_factor(density, pattern) == pytest.approx(factor, abs=0.005)


@given(st.data(), seeds)
def test_waste_of_independent_masks_is_the_expected(data, seed):
    pattern = data.draw(grains)
    density = data.draw(st.sampled_from([0.05, 0.2, 0.5, 0.9]))
    mask = torch.rand(256, 512, generator=torch.Generator().manual_seed(seed)) < density
    # 131,072 weights: six standard deviations of either count are below 10 %.
    assert waste_factor(mask, pattern) == pytest.approx(expected_waste_factor(density, pattern), rel=0.1)


def test_waste_at_the_edges():
    assert waste_factor(torch.zeros(4, 4, dtype=torch.bool), "v4") == 1.0
    assert waste_factor(torch.ones(4, 4, dtype=torch.bool), "v4") == 1.0
    assert expected_waste_factor(1.0, "v16") == 1.0
    with pytest.raises(InvalidInput, match="density 0"):
        expected_waste_factor(0, "v4")
    with pytest.raises(PatternError, match="2:4"):
        expected_waste_factor(0.5, "2:4")
