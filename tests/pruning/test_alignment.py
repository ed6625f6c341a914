"""Hidden units in another order: the same function, less waste, the same as by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pollard
from pollard.errors import InvalidInput, NothingMatched, PatternError
from pollard.formats.waste import waste_factor
from pollard.pruning import align_
from pollard.pruning.alignment import grouped_rows


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(),
        nn.Sequential(nn.Linear(32, 16), nn.LayerNorm(16), nn.PReLU(16), nn.Linear(16, 8, bias=False)), nn.Linear(8, 5),
    )  # fmt: skip
    for _ in range(3):
        model(torch.randn(20, 12))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.LayerNorm | nn.PReLU):
            nn.init.normal_(module.weight)
    return model.eval()


def clustered(model):
    """Rows of a few kinds, in any order: what training comes to, exaggerated."""
    draw = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            kinds = torch.rand(4, layer.in_features, generator=draw) < 0.3
            with torch.no_grad():
                layer.weight.mul_(
                    torch.where(kinds[torch.randint(4, (layer.out_features,), generator=draw)], 1.0, 0.01)
                )
    return model


@pytest.mark.parametrize("pattern", ["v2", "v4", "v8"])
def test_the_model_computes_what_it_did_and_less_is_wasted(pattern):
    model, x = clustered(network()), torch.randn(9, 12)
    y, before = model(x), copy.deepcopy(model.state_dict())
    plan = pollard.prune(model, "magnitude", 0.25, allocation="uniform")
    moved = align_(model, plan, pattern)
    torch.testing.assert_close(model(x), y)
    assert list(moved) == ["0", "4.0", "4.3"]
    columns = {"0": torch.arange(12), "4.0": moved["0"].order, "4.3": moved["4.0"].order}
    for name, found in moved.items():
        mask = plan.mask(name)
        assert sorted(found.order.tolist()) == list(range(len(mask)))
        assert torch.equal(model.get_submodule(name).weight, before[f"{name}.weight"][found.order][:, columns[name]])
        assert found.waste_before == waste_factor(mask, pattern)
        assert found.waste_after == waste_factor(mask[found.order], pattern) <= found.waste_before
    assert moved["0"].waste_after < 0.8 * moved["0"].waste_before
    # What is kept at the grain is worth more.
    dense = clustered(network())
    kept = [
        pollard.prune(each, "magnitude", 0.25, allocation="uniform", pattern={"0": pattern}) for each in (dense, model)
    ]
    sums = [
        float((each[0].weight.detach().abs() * plan.mask("0")).sum())
        for each, plan in zip((dense, model), kept, strict=True)
    ]
    assert sums[1] > sums[0]


def test_pairs_are_named_where_modules_are_called_in_other_ways():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    torch.manual_seed(0)
    model, x = clustered(Block()), torch.randn(4, 8)
    y, plan = model(x), pollard.prune(model, "magnitude", 0.3)
    with pytest.raises(NothingMatched, match="pairs="):
        align_(model, plan, "v4")
    moved = align_(model, plan, "v4", pairs=[("up", "down")])
    torch.testing.assert_close(model(x), y)
    assert moved["up"].waste_after < moved["up"].waste_before


@given(st.integers(1, 6), st.integers(1, 20), st.sampled_from([1, 2, 4]), st.integers(0, 2**31), st.floats(0, 1))
def test_an_order_has_every_row_once_and_follows_its_rule(groups, columns, rows, seed, density):
    mask = torch.rand(groups * rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    order = grouped_rows(mask, rows).tolist()
    assert sorted(order) == list(range(len(mask)))
    left = set(order)
    for place, chosen in enumerate(order):
        if place % rows == 0:
            union, cost = torch.zeros(columns, dtype=torch.bool), lambda row: -int(mask[row].sum())
        else:
            cost = lambda row, union=union: int((mask[row] & ~union).sum())  # noqa: E731
        assert chosen == min(sorted(left), key=cost)
        left.remove(chosen)
        union = union | mask[chosen]


def test_numbers_between_that_are_not_of_the_units_leave_layers_as_they_are():
    for between in (nn.LayerNorm((7, 8)), nn.BatchNorm1d(7), nn.PReLU(7)):
        model = nn.Sequential(nn.Linear(6, 8), between, nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 3)).eval()
        x = torch.randn(5, 7, 6)
        y, plan = model(x), pollard.prune(model, "magnitude", 0.4)
        assert list(align_(model, plan, "v4")) == ["2"]
        torch.testing.assert_close(model(x), y)


def test_what_cannot_be_aligned_is_refused_before_anything_moves():
    model = network()
    plan, before = pollard.prune(model, "magnitude", 0.3), copy.deepcopy(model.state_dict())
    with pytest.raises(PatternError, match="b4x2"):
        align_(model, plan, "b4x2")
    with pytest.raises(InvalidInput, match="32 rows of layer '0' for 8 columns of layer '5'"):
        align_(model, plan, "v4", pairs=[("0", "5")])
    with pytest.raises(NothingMatched, match="'lost'"):
        align_(model, plan, "v4", pairs=[("0", "lost")])
    with pytest.raises(NothingMatched, match="no pair of layers"):
        align_(model, {"5": plan["5"]}, "v4")
    shared = nn.Sequential(model[0], nn.ReLU(), model[4][0])
    both = nn.ModuleList([shared, model[4][0]])
    with pytest.raises(NothingMatched):
        align_(both, {"0.0": plan["0"]}, "v4")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
