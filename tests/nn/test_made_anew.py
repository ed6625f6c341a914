"""Sparse layers whose parameters are made anew at each call, by hooks of torch or by parametrizations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import pollard
from pollard.errors import InvalidInput

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
WEIGHT = {"compressed": "values", "masked": "weight"}


def network(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    return pollard.sparsify_(model, pollard.prune(model, "magnitude", density=0.5), storage=storage)


class Softened(nn.Module):
    def forward(self, tensor):
        return tensor.tanh()


@pytest.mark.parametrize("storage", WEIGHT)
def test_masks_of_torch_are_made_permanent_on_the_way_back(storage):
    model = network(storage)
    prune.l1_unstructured(model[0], WEIGHT[storage], amount=0.8)
    prune.l1_unstructured(model[2], "bias", amount=0.5)
    y = model(X)
    pollard.densify_(model)
    torch.testing.assert_close(model(X), y)
    assert sorted(name for name, _ in model.named_parameters()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert (model[2].bias == 0).sum() == 2


@pytest.mark.parametrize("storage", WEIGHT)
def test_a_layer_under_masks_of_torch_is_pruned_further(storage):
    model = network(storage)
    values = getattr(model[0], WEIGHT[storage])
    prune.l1_unstructured(model[0], WEIGHT[storage], amount=0.9)
    plan = pollard.prune(network(storage), "magnitude", density=0.2)
    pollard.sparsify_(model, plan)
    assert dict(model[0].named_parameters()).keys() == {WEIGHT[storage], "bias"}
    assert getattr(model[0], WEIGHT[storage]) is values
    assert model[0].topology.same_as(plan["0"])
    model(X).sum().backward()
    assert values.grad.shape == values.shape


@pytest.mark.parametrize("storage", WEIGHT)
@pytest.mark.parametrize(
    "change",
    [
        pollard.densify_,
        lambda model: pollard.sparsify_(model, pollard.prune(network("compressed"), "magnitude", density=0.1)),
        lambda model: pollard.rigl(model, torch.optim.SGD(model.parameters(), 0.1), density=None, steps=10),
    ],
)
def test_a_weight_that_a_hook_makes_is_refused_with_the_way_out(storage, change):
    model = network(storage)
    nn.utils.spectral_norm(model[2], WEIGHT[storage])
    y = model.eval()(X)
    with pytest.raises(InvalidInput, match=rf"layer '2' under .*remove_spectral_norm\(layer, '{WEIGHT[storage]}'\)"):
        change(model)
    assert torch.equal(model(X), y)


def test_a_parametrized_bias_goes_on_in_training_and_is_refused_where_the_layer_would_go():
    model = network("compressed")
    parametrize.register_parametrization(model[0], "bias", Softened())
    with pytest.raises(InvalidInput, match="whose bias is parametrized by Softened"):
        pollard.densify_(model)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", density=0.2))
    sparse = pollard.rigl(model, torch.optim.SGD(model.parameters(), 0.1), density=None, steps=4, every=1)
    for _ in range(3):
        model(X).square().sum().backward()
        sparse.step()
    assert sparse.updates == 3
    parametrize.remove_parametrizations(model[0], "bias")
    y = model(X)
    torch.testing.assert_close(pollard.densify_(model)(X), y)


def test_the_fix_names_the_parameter_that_is_masked():
    model = nn.Sequential(nn.Linear(12, 8))
    prune.l1_unstructured(model[0], "bias", amount=0.5)
    with pytest.raises(InvalidInput, match=r"makes its bias anew.*prune\.remove\(layer, 'bias'\)"):
        pollard.prune(model, "magnitude", density=0.5)
    prune.l1_unstructured(model[0], "weight", amount=0.8)
    bias = model[0].bias.detach().clone()
    pollard.sparsify_(model, pollard.plan_from_zeros(model))
    assert torch.equal(model[0].bias, bias)


@pytest.mark.parametrize("made", [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_a_mask_over_a_bias_does_not_hide_what_makes_the_weight(made):
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    plan = pollard.prune(model, "magnitude", density=0.5)
    made(model[0])
    prune.l1_unstructured(model[0], "bias", 0.5)
    before = dict(model[0].named_parameters())
    with pytest.raises(InvalidInput, match=r"remove_.*first"):
        pollard.sparsify_(model, plan)
    after = dict(model[0].named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
