from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import PatternError
from pollard.formats.pattern import ROWS, Pattern
from strategies import patterns, shapes


@given(patterns)
def test_text_and_pattern_are_inverse(pattern):
    assert Pattern.parse(str(pattern)) == pattern
    assert Pattern.parse(pattern) is pattern
    assert eval(repr(pattern)) == pattern
    assert pickle.loads(pickle.dumps(pattern)) == pattern


@given(st.text().filter(lambda text: text not in {str(Pattern(rows)) for rows in ROWS}))
def test_any_other_text_is_refused(text):
    with pytest.raises(PatternError, match="v16"):
        Pattern.parse(text)


@pytest.mark.parametrize("rows", [0, 3, 32, -1])
def test_any_other_number_of_rows_is_refused(rows):
    with pytest.raises(PatternError, match=f"{rows} rows"):
        Pattern(rows)


def test_a_pattern_that_does_not_divide_the_rows_is_refused():
    with pytest.raises(PatternError, match=r"10 rows.*multiple of 4"):
        Pattern(4).grain_shape((10, 3))


@given(st.data())
def test_a_grain_sum_adds_the_rows_of_its_grain(data):
    pattern = data.draw(patterns)
    shape = data.draw(shapes(pattern))
    weights = torch.arange(shape[0] * shape[1], dtype=torch.float64).view(shape)
    sums = pattern.grain_sum(weights)
    assert sums.shape == pattern.grain_shape(shape)
    for group in range(sums.shape[0]):
        rows = weights[group * pattern.rows : (group + 1) * pattern.rows]
        assert torch.equal(sums[group], rows.sum(0))


@given(st.data())
def test_spreading_gives_every_row_its_grain(data):
    pattern = data.draw(patterns)
    shape = data.draw(shapes(pattern))
    grains = torch.arange(shape[0] // pattern.rows * shape[1]).view(-1, shape[1]) if shape[1] else torch.empty(0, 0)
    weights = pattern.spread(grains)
    for row in range(weights.shape[0]):
        assert torch.equal(weights[row], grains[row // pattern.rows])
