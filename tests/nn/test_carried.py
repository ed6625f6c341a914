"""What users hang on a layer is there on the layer in its place, or the replacement is refused before anything is touched."""

import pytest
import torch
from torch import nn

import pollard
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


def taken_apart(kind):
    model = nn.Sequential(kind())
    return model, pollard.prune(model, "magnitude", 0.5)


APART = {
    "a convolution": (lambda: nn.Conv2d(3, 4, 3), "weight"),
    "a recurrent layer": (lambda: nn.LSTM(4, 8), "weight_hh_l0"),
    "attention": (lambda: nn.MultiheadAttention(8, 2), "in_proj_weight"),
}


@pytest.mark.parametrize(("kind", "weight"), APART.values(), ids=APART)
@pytest.mark.parametrize("late", [False, True])
def test_what_hangs_on_a_layer_that_is_taken_apart_is_there_when_it_is_whole_again(kind, weight, late):
    model, plan = taken_apart(kind)
    bias = next(each for name, each in model[0].named_parameters() if "bias" in name and "." not in name)
    getattr(model[0], weight).no_decay, bias.group = True, "biases"
    if late:
        sparsify_(model, plan)
    model[0].note = "mine"
    model[0].register_buffer("seen", torch.tensor([3]), persistent=False)
    model[0].gate = nn.Parameter(torch.ones(1))
    if late:
        model[0].adapter = nn.Linear(2, 2)
    else:
        sparsify_(model, plan)
    apart = [part.values for part in model[0].children() if hasattr(part, "values")]
    assert any(getattr(values, "no_decay", False) for values in apart)
    held = model[0].seen, model[0].gate
    densify_(model)
    whole = model[0]
    assert type(whole) is type(kind())
    assert getattr(whole, weight).no_decay
    assert bias.group == "biases"
    assert whole.note == "mine"
    assert (whole.seen, whole.gate) == held
    assert "0.seen" not in model.state_dict()
    assert hasattr(whole, "adapter") is late


@pytest.mark.parametrize(("kind", "weight"), APART.values(), ids=APART)
@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_a_weight_that_is_taken_apart_are_refused(kind, weight, hook):
    model, plan = taken_apart(kind)
    handle = getattr(getattr(model[0], weight), hook)(print)
    with pytest.raises(InvalidInput, match=f"hooks on the {weight} of layer '0'"):
        sparsify_(model, plan)
    assert type(model[0]) is type(kind())
    handle.remove()
    sparsify_(model, plan)
    seen = model[0].register_forward_hook(print)
    with pytest.raises(InvalidInput, match="layer '0' with hooks"):
        densify_(model)
    seen.remove()
    assert type(densify_(model)[0]) is type(kind())
