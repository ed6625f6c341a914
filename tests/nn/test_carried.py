"""What users hang on a layer is there on the layer in its place, or the replacement is refused before anything is touched."""

import pytest
import torch
from torch import nn

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.nn import carried
from pollard.nn.surgery import densify_, sparsify_

STORAGES = ("compressed", "masked")
PLAN = {"0": Topology.from_mask(torch.eye(3, 4).bool())}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())


def dressed():
    model = network()
    layer = model[0]
    layer.name, layer._is_initialised, layer.plain = "query", True, torch.ones(2)
    layer.register_buffer("scale", torch.tensor([2.0]))
    layer.register_buffer("seen", torch.tensor([3]), persistent=False)
    layer.adapter = nn.Linear(4, 2)
    layer.gate = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
    layer.weight.no_decay, layer.bias.group = True, "biases"
    return model


@pytest.mark.parametrize("storage", STORAGES)
def test_all_that_was_added_goes_there_and_back_again(storage):
    model = dressed()
    held = {name: getattr(model[0], name) for name in ("plain", "scale", "seen", "adapter", "gate")}
    expected = network().state_dict().keys() | {"0.scale", "0.gate", "0.adapter.weight", "0.adapter.bias"}
    sparsify_(model, PLAN, storage=storage)
    for _ in range(2):
        layer = model[0]
        assert (layer.name, layer._is_initialised) == ("query", True)
        assert all(getattr(layer, name) is each for name, each in held.items())
        assert not layer.gate.requires_grad
        weight = layer.weight if isinstance(layer, nn.Linear) or storage == "masked" else layer.values
        assert (weight.no_decay, layer.bias.group) == (True, "biases")
        assert "0.seen" not in model.state_dict()
        assert {"0.scale", "0.gate", "0.adapter.weight"} <= model.state_dict().keys()
        densify_(model) if not isinstance(layer, nn.Linear) else None
    assert type(model[0]) is nn.Linear
    assert vars(model[0]).keys() == vars(dressed()[0]).keys()
    assert model.state_dict().keys() == expected


@pytest.mark.parametrize("storage", STORAGES)
def test_a_layer_with_nothing_added_gets_nothing(storage):
    model = sparsify_(network(), PLAN, storage=storage)
    model(torch.randn(2, 4)).sum().backward()
    assert vars(densify_(model)[0]).keys() == vars(nn.Linear(4, 3)).keys()


@pytest.mark.parametrize("name", ["topology", "density", "activation", "values", "mask", "active"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_name_that_a_sparse_layer_uses_is_refused_before_anything_is_touched(storage, name):
    model = network()
    setattr(model[0], name, "mine")
    with pytest.raises(InvalidInput, match=f"layer '0' with '?{name}'? of your own.*other names"):
        sparsify_(model, PLAN, storage=storage)
    assert type(model[0]) is nn.Linear
    assert getattr(model[0], name) == "mine"


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_hooks_on_parameters_are_refused_until_they_are_removed(parameter, hook):
    model = network()
    handle = getattr(getattr(model[0], parameter), hook)(lambda _: None)
    with pytest.raises(InvalidInput, match=f"hooks on the {parameter} of layer '0'"):
        sparsify_(model, PLAN)
    assert type(model[0]) is nn.Linear
    handle.remove()
    assert sparsify_(model, PLAN)[0].density == 0.25


@pytest.mark.parametrize("storage", STORAGES)
def test_no_random_number_is_drawn(storage):
    carried._owned.cache_clear()
    model, before = network(), torch.get_rng_state()
    densify_(sparsify_(model, PLAN, storage=storage))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_that_was_compiled_by_itself_is_refused_until_that_is_undone():
    model = network()
    model[0].compile(backend="eager")
    with pytest.raises(InvalidInput, match=r"layer .0., compiled by itself.*_compiled_call_impl = None"):
        sparsify_(model, PLAN)
    model[0]._compiled_call_impl = None
    x = torch.randn(2, 4)
    torch.testing.assert_close(sparsify_(model, PLAN)(x), densify_(model)(x))


def test_what_holds_on_to_the_layer_is_refused():
    model = network()
    model[0].first = model[0].extra_repr
    with pytest.raises(InvalidInput, match="a method of its own as 'first'"):
        sparsify_(model, PLAN)
    assert type(model[0]) is nn.Linear
