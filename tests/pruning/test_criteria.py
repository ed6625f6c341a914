from __future__ import annotations

import pytest
import torch
from torch import nn

from pollard.errors import InvalidInput
from pollard.pruning import CRITERIA, MEASUREMENTS, criterion, prune
from pollard.pruning.criteria.baselines import magnitude, random
from pollard.pruning.criteria.criterion import OWN_NEEDS
from pollard.pruning.criteria.first_order import snip


@pytest.fixture
def dummy():
    @criterion(needs=("weight",))
    def leftmost(weight):
        return torch.arange(weight.shape[1], 0, -1.0).expand(weight.shape)

    yield leftmost
    del CRITERIA["leftmost"]


def test_a_new_criterion_is_a_member_and_can_be_asked_for_by_name(dummy):
    assert CRITERIA["leftmost"] is dummy
    plan = prune(nn.Sequential(nn.Linear(4, 2)), "leftmost", 0.5)
    assert plan.mask("0").int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert plan.criterion == "leftmost"


def test_the_members():
    assert {"magnitude", "random", "snip"} <= set(CRITERIA)
    assert all(set(member.needs) <= {*OWN_NEEDS, *MEASUREMENTS} for member in CRITERIA.values())


def test_an_unknown_need_is_refused():
    with pytest.raises(InvalidInput, match="a need for 'hessian'"):
        criterion(needs=("weight", "hessian"))


def test_defining_a_criterion_again_replaces_it(dummy):
    def leftmost(weight):
        return -weight

    assert CRITERIA["leftmost"] is dummy
    criterion(needs=("weight",))(leftmost)
    assert CRITERIA["leftmost"] is leftmost


def test_formulas():
    weight, gradient = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[-0.5, 1.0, 0.0]])
    assert magnitude(weight=weight).tolist() == [[1.0, 2.0, 3.0]]
    assert snip(weight=weight, gradient=gradient).tolist() == [[0.5, 2.0, 0.0]]


def test_random_scores_are_uniform_and_belong_to_the_generator():
    weight = torch.zeros(100, 100, dtype=torch.bfloat16)
    first, again = (random(weight=weight, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype is torch.float32
    assert first.min() >= 0
    assert first.max() < 1
    assert abs(first.mean().item() - 0.5) < 5 / 12**0.5 / 100
