"""Networks to be measured are found by name, called once, and refused with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pollard.errors import InvalidInput, PollardError
from pollard.report.networks import NETWORKS, Workload, load, outputs

MODULE = """
import torch
from torch import nn

model = nn.Sequential(nn.Linear(8, 6), nn.Dropout(), nn.Linear(6, 4)).train()
x = torch.ones(3, 8)


class Named(nn.Module):
    def forward(self, x, scale):
        return {"scaled": x * scale, "ids": torch.ones(2).long()}


class Ids(nn.Module):
    def forward(self, x):
        return x.long()


def tensor():
    return model, x


def several():
    return Named(), (x, 2.0)


def named():
    return Named(), {"x": x, "scale": 2.0}


def lazy():
    return nn.Sequential(nn.LazyLinear(4)), x


def needs(width, depth=2):
    return model, x


def alone():
    return model


def listed():
    return model, [x]


def misfit():
    return model, torch.ones(3, 9)


def counting():
    return Ids(), x


def elsewhere():
    return nn.Sequential(nn.Linear(8, 6, device="meta")), x


def broken():
    import not_there
"""


@pytest.fixture(autouse=True)
def written(own_folder, monkeypatch):
    Path("networks_of_a_test.py").write_text(MODULE)
    yield
    sys.modules.pop("networks_of_a_test", None)


def named(function: str) -> Workload:
    return load(f"networks_of_a_test:{function}")


@pytest.mark.parametrize(("function", "shapes"), [("tensor", [[3, 8]]), ("several", [[3, 8]]), ("named", [[3, 8]])])
def test_a_function_of_the_current_folder_gives_model_and_inputs(function, shapes):
    path = list(sys.path)
    workload = named(function)
    assert sys.path == path
    assert workload.input_shapes == shapes
    assert list(outputs(workload())) == ["output 0"]


def test_the_model_stays_in_training_mode_and_lazy_layers_are_made():
    assert all(module.training for module in named("tensor").model.modules())
    assert named("lazy").model[0].weight.shape == (4, 8)


def test_a_copy_in_another_precision_is_for_inference_and_leaves_the_model_as_it_is():
    workload = named("tensor")
    half = workload.to(torch.bfloat16)
    assert half().dtype == torch.bfloat16
    assert not half.model.training
    assert not half().requires_grad
    assert workload.model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("encodr", "package.module:function"),
        ("encodr", "Did you mean 'encoder'?"),
        ("nothing like it", "(model, inputs)"),
        ("not_there_at_all:f", "current folder"),
        ("networks_of_a_test:tensr", "one of tensor, several"),
        ("networks_of_a_test:model", "no function"),
        ("networks_of_a_test:x", "no function"),
        ("networks_of_a_test:needs", "without arguments"),
        ("networks_of_a_test:alone", "(model, inputs)"),
        ("networks_of_a_test:listed", "tuple(inputs)"),
        ("networks_of_a_test:misfit", "fails on"),
        ("networks_of_a_test:counting", "no floating-point"),
        ("networks_of_a_test:elsewhere", "meta"),
    ],
)
def test_what_is_no_network_is_refused_with_the_reason(model, told):
    with pytest.raises(InvalidInput) as refused:
        load(model)
    assert told in str(refused.value)


def test_an_error_within_the_users_function_is_the_users():
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        named("broken")


def test_tokens_are_for_built_in_networks():
    with pytest.raises(InvalidInput, match="its own inputs"):
        load("networks_of_a_test:tensor", (1, 8))
    workload = load("encoder", (2, 4))
    assert workload.input_shapes == [[2, 4]]
    [hidden] = outputs(workload()).values()
    assert hidden.shape == (2, 4, 384)


@pytest.mark.parametrize(("name", "shape"), [("resnet-20-x0.25", (3, 32, 32)), ("mlp-12-5-3", (12,))])
def test_every_network_by_name_is_measured_on_a_batch_of_its_inputs(name, shape):
    state = torch.get_rng_state()
    first, second = load(name), load(name)
    assert first.input_shapes == [[32, *shape]]
    assert torch.equal(first(), second())
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_of_any_size_that_the_network_takes():
    workload = load("resnet-20-x0.25", images=(2, 1, 8, 8))
    assert workload.input_shapes == [[2, 1, 8, 8]]
    with pytest.raises(InvalidInput, match="--tokens, or none"):
        load("encoder", images=(2, 1, 8, 8))


def test_without_transformers_the_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PollardError, match="pip install transformers"):
        load("encoder")


def test_the_encoder_is_the_same_each_time():
    first, second = (NETWORKS["encoder"](1, 4) for _ in range(2))
    assert all(map(torch.equal, first[0].parameters(), second[0].parameters()))
    assert torch.equal(first[1]["input_ids"], second[1]["input_ids"])


def test_outputs_are_found_in_attributes_too():
    class Output:
        def __init__(self):
            self.logits, self.cache = torch.ones(2), "no tensor"

    assert list(outputs(Output())) == ["output 0"]
    assert outputs("nothing") == {}


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.Linear(8, 6))
    model.stream = (number for number in range(3))
    with pytest.raises(InvalidInput, match="cannot be copied"):
        Workload("own", model, (torch.ones(3, 8),)).to(torch.float32)
