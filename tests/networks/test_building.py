"""A name becomes a network, or an error that says which names there are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pollard import networks
from pollard.errors import InvalidInput
from pollard.networks import CIFAR, Ends

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.Linear(6, classes))

    def forward(self, x):
        return self.body(x)


def between(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * 64, classes))


def alone():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def defaults(input_shape=(1, 8, 8), classes=2):
    return between(input_shape, classes)


def with_inputs():
    return alone(), torch.zeros(5, 1, 8, 8)


def needs(width, depth, classes):
    return alone()


def text():
    return "no model"


def pairs(input_shape, classes):
    class Pairs(nn.Module):
        def forward(self, x):
            return x, x

    return Pairs()
"""
DIGITS = Ends((1, 8, 8), 10)


@pytest.fixture(autouse=True)
def written(own_folder):
    Path("models_of_a_test.py").write_text(MODULE)
    yield
    sys.modules.pop("models_of_a_test", None)


@pytest.mark.parametrize("function", ["Net", "between", "alone", "defaults", "with_inputs"])
def test_a_function_of_the_users_is_given_the_ends_where_it_takes_them(function):
    path = list(sys.path)
    model = networks.build(f"models_of_a_test:{function}", DIGITS)
    assert sys.path == path
    assert model.training
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert not any(isinstance(each, nn.parameter.UninitializedParameter) for each in model.parameters())


@pytest.mark.parametrize(
    ("name", "ends", "told"),
    [
        ("vgg-17", CIFAR, "Did you mean 'vgg-1"),
        ("vgg-16-x", CIFAR, "vgg-16-x0.25"),
        ("vgg-16-x0", CIFAR, "above 0"),
        ("vgg-16-x0.5-x0.5", CIFAR, "vgg-16-x0.25"),
        ("lenet-300-100-x2", CIFAR, "Use 'lenet-300-100'"),
        ("mlp-64", DIGITS, "mlp-784-1024-1024-10"),
        ("mlp-60-10", DIGITS, "Use 'mlp-64-10'"),
        ("resnet-20", Ends((64,), 10), "come as images"),
        ("vgg-16", DIGITS, "too small"),
        ("lenet-5-caffe", DIGITS, "too small"),
        ("models_of_a_test:needs", DIGITS, "(input_shape, classes), or of nothing"),
        ("models_of_a_test:text", DIGITS, "str from"),
        ("models_of_a_test:pairs", DIGITS, "one output for each of 10 classes"),
        ("models_of_a_test:alone", Ends((1, 8, 8), 11), "one output for each of 11 classes"),
        ("models_of_a_test:alone", CIFAR, "fails on them"),
        ("models_of_a_test:nothing", DIGITS, "one of between, alone"),
        ("not_there_at_all:f", DIGITS, "current folder"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(name, ends, told):
    with pytest.raises(InvalidInput) as refused:
        networks.build(name, ends)
    assert told in str(refused.value)


def test_names_are_known_without_a_module_being_imported():
    for name in ("resnet-20", "vgg-16-x0.25", "mlp-4-3-2", "lenet-300-100", "not_there_at_all:f"):
        networks.require_name(name)
    for name in ("resnet", "mlp-4-0-2", "a:b:c", ""):
        with pytest.raises(InvalidInput):
            networks.require_name(name)


def test_building_leaves_running_statistics_as_they_are():
    model = networks.build("resnet-20-x0.25", DIGITS)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.running_mean.any() or int(norm.num_batches_tracked) for norm in norms)


def test_the_usual_ends_are_those_of_the_paper():
    assert networks.usual_ends("lenet-5-caffe-x0.5") == ((1, 28, 28), 10)
    assert networks.usual_ends("mlp-12-5-3") == ((12,), 3)
    assert networks.usual_ends("wrn-28-2") == CIFAR
