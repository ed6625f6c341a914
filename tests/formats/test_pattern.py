from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.errors import PatternError
from pollard.formats.pattern import Pattern
from strategies import patterns, shapes


@given(patterns)
def test_text_and_pattern_are_inverse(pattern):
    assert Pattern.parse(str(pattern)) == pattern
    assert Pattern.parse(pattern) is pattern
    assert eval(repr(pattern)) == pattern
    assert pickle.loads(pickle.dumps(pattern)) == pattern


@pytest.mark.parametrize(
    "name", ["unstructured", "v2", "v16", "b16x2", "b1x4", "b4x64", "b1x9", "b4x25", "2:4", "1:4", "4:8", "16:32"]
)
def test_what_is_named_is_told_by_its_name(name):
    assert str(Pattern.parse(name)) == name


@pytest.mark.parametrize(("name", "block"), [("k3x3", "b1x9"), ("k1x7", "b1x7"), ("k5", "b1x5"), ("k3", "b1x3")])
def test_kernels_of_convolutions_are_blocks_of_a_row(name, block):
    assert Pattern.parse(name) == Pattern.parse(block)


@given(st.text())
def test_any_other_text_is_refused(text):
    with pytest.raises(PatternError, match=r"unstructured, vN, bRxC, kRxC or N:M.*'2:4'"):
        Pattern.parse(f"x{text}")


@pytest.mark.parametrize(
    "name", ["v0", "v3", "v32", "b3x2", "b16x6", "b32x2", "2:2", "0:4", "4:2", "2:64", "v-1", "2:4 ", ""]
)
def test_what_no_kernel_or_file_may_meet_is_refused(name):
    with pytest.raises(PatternError, match=f"pattern '{name}'.*Patterns are spelled"):
        Pattern.parse(name)


def test_a_block_has_no_n_of_m():
    with pytest.raises(PatternError, match="Patterns are spelled"):
        Pattern(2, 1, 2, 4)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("v4", (10, 3), r"10 rows and 3 columns.*a multiple of 4 rows"),
        ("b4x2", (8, 3), r"a multiple of 4 rows and a multiple of 2 columns"),
        ("2:4", (3, 6), r"a multiple of 4 columns for pattern 2:4"),
    ],
)
def test_a_pattern_that_does_not_divide_a_weight_is_refused(name, shape, told):
    pattern = Pattern.parse(name)
    assert not pattern.fits(shape)
    with pytest.raises(PatternError, match=told):
        pattern.grid(shape)


@given(st.data())
def test_a_grain_sum_adds_the_weights_of_its_grain(data):
    pattern = data.draw(patterns)
    shape = data.draw(shapes(pattern))
    weights = torch.arange(shape[0] * shape[1], dtype=torch.float64).view(shape)
    sums = pattern.grain_sum(weights)
    assert sums.shape == pattern.grid(shape)
    for group, column in torch.ones(sums.shape).nonzero().tolist():
        rows = slice(group * pattern.rows, (group + 1) * pattern.rows)
        columns = slice(column * pattern.columns, (column + 1) * pattern.columns)
        assert sums[group, column] == weights[rows, columns].sum()


@given(st.data())
def test_spreading_gives_every_weight_its_grain(data):
    pattern = data.draw(patterns)
    groups, width = pattern.grid(data.draw(shapes(pattern)))
    grains = torch.arange(groups * width).view(groups, width)
    weights = pattern.spread(grains)
    for row, column in torch.ones(weights.shape).nonzero().tolist():
        assert weights[row, column] == grains[row // pattern.rows, column // pattern.columns]
