from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from pollard.errors import InvalidInput, NothingMatched
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.nn.surgery import densify_, sparsify_

STORAGES = {"compressed": SparseLinear, "masked": MaskedLinear}
X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8, bias=False)), nn.Linear(8, 4))


def plan(pattern: str = "unstructured") -> dict[str, Topology]:
    generator = torch.Generator().manual_seed(2)
    shapes = {"0": (8, 12), "2.0": (8, 8), "3": (4, 8)}
    return {name: Topology.random(shape, 0.4, pattern, generator) for name, shape in shapes.items()}


def masked_by_hand(model: nn.Module, topologies: dict[str, Topology]) -> nn.Module:
    model = copy.deepcopy(model)
    for name, topology in topologies.items():
        model.get_submodule(name).weight.data.mul_(topology.mask())
    return model


def unchanged(model: nn.Module, before: nn.Module) -> bool:
    return str(model) == str(before) and all(
        v.is_meta or torch.equal(v, before.state_dict()[k]) for k, v in model.state_dict().items()
    )


@pytest.mark.parametrize("pattern", ["unstructured", "v4"])
@pytest.mark.parametrize("storage", STORAGES)
def test_there_and_back_again(storage, pattern):
    model = network()
    expected = masked_by_hand(model, plan(pattern))
    assert sparsify_(model, plan(pattern), storage=storage) is model
    for name, topology in plan(pattern).items():
        layer = model.get_submodule(name)
        assert type(layer) is STORAGES[storage]
        assert layer.topology.same_as(topology)
        assert layer.density == topology.density
    torch.testing.assert_close(model(X), expected(X))
    assert densify_(model) is model
    assert unchanged(model, expected)


@pytest.mark.parametrize("storage", STORAGES)
def test_flags_and_dtype_are_carried_over_both_ways(storage):
    model = network().double().eval()
    model[0].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    sparsify_(model, plan(), storage=storage)
    for _ in range(2):
        assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True, False]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
        assert [module.training for module in model.modules()] == [False] * 6
        assert model[2][0].bias is None
        densify_(model) if not isinstance(model[0], nn.Linear) else None


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("layers", ["2.0", ["2.*"], lambda name, module: module.bias is None])
def test_layers_can_be_selected(storage, layers):
    model = sparsify_(network(), plan(), layers=layers, storage=storage)
    assert [type(model.get_submodule(name)) for name in plan()] == [nn.Linear, STORAGES[storage], nn.Linear]
    sparsify_(model, {"3": plan()["3"]}, storage=storage)
    densify_(model, layers="3")
    assert [type(model.get_submodule(name)) for name in plan()] == [nn.Linear, STORAGES[storage], nn.Linear]


def test_a_shared_module_is_replaced_wherever_it_stands():
    shared = nn.Linear(12, 12)
    model = nn.Sequential(shared, nn.Tanh(), nn.Sequential(shared))
    topologies = {"0": Topology.random((12, 12), 0.3, generator=torch.Generator().manual_seed(3))}
    expected = masked_by_hand(model, topologies)
    sparsify_(model, topologies)
    assert model[0] is model[2][0]
    assert isinstance(model[0], SparseLinear)
    torch.testing.assert_close(model(X), expected(X))
    densify_(model)
    assert model[0] is model[2][0]
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("storage", STORAGES)
def test_each_dense_weight_is_let_go_before_the_next_layer_is_made(storage, monkeypatch):
    model, alive = network(), []
    dense = [weakref.ref(model.get_submodule(name).weight) for name in plan()]
    made = STORAGES[storage].from_dense

    def counting(linear, topology):
        alive.append(sum(weight() is not None for weight in dense))
        return made(linear, topology)

    monkeypatch.setattr(STORAGES[storage], "from_dense", counting)
    sparsify_(model, plan(), storage=storage)
    assert alive == [3, 2, 1]
    assert [weight() for weight in dense] == [None] * 3


def test_random_numbers_are_not_consumed():
    model, state = network(), torch.get_rng_state()
    for storage in STORAGES:
        densify_(sparsify_(model, plan(), storage=storage))
    assert torch.equal(torch.get_rng_state(), state)


def tied() -> nn.Sequential:
    model = network()
    model.append(nn.Linear(12, 8))
    model[4].weight = model[0].weight
    return model


def hooked() -> nn.Sequential:
    model = network()
    model[3].register_forward_pre_hook(lambda module, inputs: None)
    return model


def on_meta() -> nn.Sequential:
    model = network()
    model[3].to("meta")
    return model


REFUSED = {
    "an unknown name": (network, {"0": plan()["0"], "2.1": plan()["2.0"]}, NothingMatched, r"'2\.1', .* '2\.0'"),
    "another kind of module": (network, {"1": plan()["0"]}, NothingMatched, "'1', which matches no layer"),
    "a plan of nothing": (network, {}, NothingMatched, "none of 0 layers"),
    "another shape": (
        network,
        {"0": plan()["0"], "3": plan()["0"]},
        InvalidInput,
        r"\(8, 12\) for layer '3'; .* \(4, 8\)",
    ),
    "tied weights": (tied, plan(), InvalidInput, r"tied: 0\.weight = 4\.weight"),
    "hooks": (hooked, plan(), InvalidInput, "layer '3' with hooks"),
    "sparse already": (lambda: sparsify_(network(), plan()), plan("v2"), InvalidInput, "'0', which is sparse already"),
    "another device": (on_meta, plan(), InvalidInput, "layer '3' on meta"),
    "a bare layer": (lambda: nn.Linear(12, 8), {"": plan()["0"]}, InvalidInput, "itself a Linear"),
}


@pytest.mark.parametrize(("make", "topologies", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_leaves_the_model_as_it_was(make, topologies, error, message):
    model = make()
    before = copy.deepcopy(model)
    with pytest.raises(error, match=message):
        sparsify_(model, topologies)
    assert unchanged(model, before)


def test_an_unknown_storage_is_refused():
    with pytest.raises(InvalidInput, match="storage='csr'; expected one of compressed, masked"):
        sparsify_(network(), plan(), storage="csr")


def test_there_must_be_something_to_make_dense():
    with pytest.raises(NothingMatched, match="a model without sparse layers"):
        densify_(network())
    with pytest.raises(NothingMatched, match="'1'"):
        densify_(sparsify_(network(), plan()), layers="1")
    with pytest.raises(InvalidInput, match="itself a SparseLinear"):
        densify_(SparseLinear.from_dense(nn.Linear(12, 8), plan()["0"]))


def test_a_fused_relu_is_not_lost_on_the_way_back():
    model = sparsify_(network(), plan())
    model[3].activation = "relu"
    with pytest.raises(InvalidInput, match="a fused activation in '3'"):
        densify_(model)
    assert all(isinstance(model.get_submodule(name), SparseLinear) for name in plan())
    assert type(densify_(model, layers=["0"])[0]) is nn.Linear


# ------------------------------------------------------------------------------------------------------- MaskedLinear


def test_dropped_weights_get_exactly_no_gradient_and_have_no_effect():
    linear, topology = nn.Linear(12, 8), plan()["0"]
    layer = MaskedLinear.from_dense(linear, topology)
    with torch.no_grad():
        layer.weight[~layer.mask] = float("inf")
    layer(X).square().sum().backward()
    assert layer.weight.grad[~layer.mask].count_nonzero() == 0
    assert layer.weight.grad[layer.mask].count_nonzero() == topology.nnz
    assert torch.equal(layer.to_dense().weight, linear.weight * topology.mask())


def test_masked_takes_a_mask_or_a_topology():
    linear, mask = nn.Linear(12, 8), plan("v4")["0"].mask()
    by_mask, by_topology = MaskedLinear.from_dense(linear, mask, "v4"), MaskedLinear.from_dense(linear, plan("v4")["0"])
    assert torch.equal(by_mask(X), by_topology(X))
    assert str(by_mask) == "MaskedLinear(in_features=12, out_features=8, density=0.4167, pattern=v4, bias=True)"
    with pytest.raises(InvalidInput, match=r"a weight of shape \(8, 12\) with a topology of shape \(4, 8\)"):
        MaskedLinear.from_dense(linear, plan()["3"])


def test_masked_keeps_its_own_copy_of_the_weights():
    linear = nn.Linear(12, 8)
    layer = MaskedLinear.from_dense(linear, plan()["0"])
    nn.init.zeros_(linear.weight)
    assert layer.weight.count_nonzero() == plan()["0"].nnz


def test_masked_state_survives_copy_and_state_dict():
    layer = MaskedLinear.from_dense(nn.Linear(12, 8), plan()["0"])
    other = MaskedLinear.from_dense(nn.Linear(12, 8), Topology.full((8, 12)))
    other.load_state_dict(layer.state_dict())
    assert sorted(layer.state_dict()) == ["bias", "mask", "weight"]
    assert other.topology.same_as(layer.topology)
    assert torch.equal(other(X), layer(X))
    assert torch.equal(copy.deepcopy(layer)(X), layer(X))
