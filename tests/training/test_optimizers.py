"""Optimizers are torch's, fused, and decay weights only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pollard.formats.topology import Topology
from pollard.nn.surgery import sparsify_
from pollard.training import TrainingOptions, make_optimizer
from pollard.training.optimizers import split_parameters


def small_model():
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


@pytest.mark.parametrize(
    "name, kind", [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_it_is_torchs_own_and_fused(name, kind):
    optimizer = make_optimizer(small_model(), TrainingOptions(optimizer=name))
    assert type(optimizer) is kind
    assert all(group["fused"] for group in optimizer.param_groups)


def test_weights_decay_and_the_rest_does_not_unless_asked():
    model = small_model()
    sparsify_(model, {"0": Topology.from_mask(torch.eye(3, 4, dtype=torch.bool))})
    weights, rest = split_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(parameter)] for parameter in weights] == ["0.values", "2.weight"]
    assert {names[id(parameter)] for parameter in rest} == {"0.bias", "1.weight", "1.bias", "2.bias"}
    decays = [group["weight_decay"] for group in make_optimizer(model, TrainingOptions(weight_decay=0.1)).param_groups]
    assert decays == [0.1, 0]
    options = TrainingOptions(weight_decay=0.1, decay_all=True)
    assert [group["weight_decay"] for group in make_optimizer(model, options).param_groups] == [0.1, 0.1]


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Linear(3, 2, bias=False)
    assert len(make_optimizer(model, TrainingOptions()).param_groups) == 1
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    [group] = make_optimizer(model, TrainingOptions()).param_groups
    assert group["params"] == [model.bias]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_weight_in_half_precision_is_stepped(name, dtype):
    model = nn.Linear(64, 32, bias=False).to(dtype)
    before = model.weight.detach().clone()
    model.weight.grad = torch.ones_like(model.weight)
    make_optimizer(model, TrainingOptions(optimizer=name, lr=0.1)).step()
    assert (model.weight < before).all()
