from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import pollard
from pollard.coverage import Coverage
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.selection import weight_layers


class Conv1D(nn.Module):
    """As GPT-2's: a weight `(in, out)`, and no nn.Linear."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8))


def mixed() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "convs": nn.Sequential(*(nn.Conv2d(2, 2, 1, bias=False) for _ in range(5))),
            "norm": nn.BatchNorm2d(2),
            "lstm": nn.LSTM(4, 4, bias=False),
            "attention": nn.MultiheadAttention(4, 2),
            "gpt": Conv1D(),
            "head": nn.Linear(10, 20),
        }
    )


def plan(kept: int = 50) -> dict[str, Topology]:
    return {"head": Topology.from_positions((20, 10), pollard.Pattern(), torch.arange(kept))}


def test_kinds_shares_and_densities():
    model = mixed()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    covered = Coverage.of(model, plan())
    assert covered == Coverage(
        sparse=1,
        layers=9,
        left={"Conv2d": 5, "LSTM": 1, "MultiheadAttention": 1, "Conv1D": 1},
        parameters=parameters,
        covered=200,
        kept=50,
    )
    assert str(covered) == (
        f"sparse 1 of 9 weight layers, {20000 / parameters:.1f} % of parameters; "
        "left dense: Conv2d x5, LSTM, MultiheadAttention, Conv1D"
    )
    assert covered.density == 0.25
    assert covered.model_density == (parameters - 150) / parameters


@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_the_planned_and_the_sparse_model_are_covered_alike(storage):
    model = mixed()
    planned = Coverage.of(model, plan())
    pollard.sparsify_(model, plan(), storage=storage)
    assert Coverage.of(model) == Coverage.of(model, plan()) == planned
    assert Coverage.of(pollard.densify_(model)).sparse == 0


def test_tied_parameters_count_once_and_lazy_ones_not_yet():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False), nn.LazyLinear(3))
    model[1].weight = model[0].weight
    covered = Coverage.of(model)
    assert (covered.parameters, covered.layers) == (24, 3)
    assert covered.left == {"Embedding": 1, "Linear": 1, "LazyLinear": 1}


def test_a_parametrized_layer_goes_by_its_own_kind():
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), nn.GroupNorm(1, 3))
    assert Coverage.of(model).left == {"Linear": 1}
    assert list(weight_layers(model)) == ["0"]


def test_sparsify_tells_its_log(caplog):
    model = mixed()
    with caplog.at_level("INFO", logger="pollard"):
        pollard.sparsify_(model, plan())
    assert caplog.messages == [str(Coverage.of(model))]


def test_coverage_goes_through_json_and_pickles():
    covered = Coverage.of(mixed(), plan())
    told = covered.to_dict()
    assert told["model_density"] == covered.model_density
    assert Coverage.from_dict(told) == covered == pickle.loads(pickle.dumps(covered))
    for damaged in ([], told | {"left": {"LSTM": "1"}}, told | {"kept": -1}, {"sparse": 1}):
        with pytest.raises(InvalidInput, match="coverage"):
            Coverage.from_dict(damaged)
