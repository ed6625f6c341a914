"""Networks by name; initial weights with the variance they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pollard.errors import InvalidInput
from pollard.networks import Ends
from pollard.networks.fully_connected import layer_shapes, layer_sizes
from pollard.recipes.models import dense_network


def draw():
    return torch.Generator().manual_seed(0)


def test_names_become_sizes():
    assert layer_sizes("lenet-300-100", Ends((784,), 10)) == (784, 300, 100, 10)
    assert layer_sizes("mlp-784-1024-1024-10", Ends((784,), 10)) == (784, 1024, 1024, 10)
    assert layer_sizes("mlp-64-12", Ends((64,), 10)) == (64, 12)


@pytest.mark.parametrize("name", ["mlp-784-10", "mlp-64-5"])
def test_ends_that_do_not_fit_the_data_are_refused_with_those_that_do(name):
    with pytest.raises(InvalidInput, match="Use 'mlp-64-10'"):
        layer_sizes(name, Ends((64,), 10))


def test_a_network_is_linear_layers_with_relu_between():
    model = dense_network((6, 5, 4, 3), "lecun", draw())
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    shapes = {
        name: tuple(module.weight.shape) for name, module in model.named_children() if isinstance(module, nn.Linear)
    }
    assert shapes == layer_shapes((6, 5, 4, 3))
    assert all(not module.bias.any() for module in model if isinstance(module, nn.Linear))


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    first = dense_network((6, 5), "kaiming", draw())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = dense_network((6, 5), "kaiming", draw())
    assert torch.equal(first[0].weight, second[0].weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name, variance", [("lecun", 1.0), ("kaiming", 2.0), ("torch", 1 / 3)])
def test_the_variance_is_as_promised_over_fan_in(name, variance):
    weight = dense_network((50, 4000), name, draw())[0].weight.detach()
    assert float(weight.mean()) == pytest.approx(0.0, abs=0.002)
    assert float(weight.var()) == pytest.approx(variance / 50, rel=0.02)
