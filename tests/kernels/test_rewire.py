"""A rewired topology and its values, against the slow twin."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pollard.kernels.rewire import gather, rewire
from strategies import changes, topologies

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def assert_same(fast, slow):
    assert fast[0].same_as(slow[0])
    assert torch.equal(fast[1], slow[1])
    assert fast[1].dtype == slow[1].dtype


@given(st.data())
def test_a_change_equals_its_twin(data):
    here = data.draw(topologies())
    change = data.draw(changes(here))
    assert_same(rewire(here, *change), here.rewired(*change))


@given(st.data())
def test_values_move_with_their_grains(data):
    here = data.draw(topologies())
    kept, grown = data.draw(changes(here))
    there, source = rewire(here, kept, grown)
    dtype = data.draw(st.sampled_from(FLOATS))
    values = torch.rand(here.nnz).to(dtype)
    dense = torch.zeros(here.shape[0] * here.shape[1], dtype=dtype)
    dense[here.weight_positions()] = values
    stayed = torch.zeros(dense.shape, dtype=torch.bool)
    stayed[here.weight_positions().view(-1, here.pattern.rows)[kept].view(-1)] = True
    places = there.weight_positions()
    expected = dense[places].masked_fill(~stayed[places], 0.5)
    rows = here.pattern.rows
    assert torch.equal(gather(values, source, 0.5, rows=rows), expected)
    fill = torch.rand(len(grown) * rows).to(dtype)
    expected[~stayed[places]] = fill
    out = torch.full_like(expected, torch.nan)
    assert gather(values, source, fill, rows=rows, out=out) is out
    assert torch.equal(out, expected)
