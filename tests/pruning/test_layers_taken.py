"""Which layers a decision takes, leaves dense, or refuses by name."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import pollard
from networks import BATCH, lenet
from pollard.errors import InvalidInput, LeftDense, NothingMatched
from pollard.formats.topology import Topology
from pollard.nn import sparsify_
from pollard.pruning import prune


def test_what_is_no_matrix_of_a_product_is_left_dense():
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(9, 8),
            "norm": nn.LayerNorm(8),
            "grouped": nn.Conv1d(32, 32, 9, groups=8),
            "out": nn.Linear(8, 9),
        }
    )
    with pytest.warns(LeftDense, match=r"sparse 1 of 3 weight layers, .*; left dense: Embedding, Conv1d\. .* of the"):
        plan = prune(model, "magnitude", 0.5)
    assert list(plan) == ["out"]
    assert "left dense: Embedding, Conv1d" in repr(plan)
    prune(model, "magnitude", 0.5, layers="out")  # meant so


@pytest.mark.parametrize("layers", ["[02]", ["0", "2"], lambda name, module: module.in_features > 11 and name < "4"])
def test_layers_are_selected_by_name_or_by_rule(layers):
    assert list(prune(lenet(), "magnitude", 0.5, layers=layers)) == ["0", "2"]


@pytest.mark.parametrize("layers", ["fc*", ["0", "fc"], lambda *_: False, []])
def test_a_selection_of_nothing_is_refused(layers):
    with pytest.raises(NothingMatched):
        prune(lenet(), "magnitude", 0.5, layers=layers)


class Own(nn.Linear):
    """A subclass that can do more, and is left alone."""

    def backwards(self, y):
        """What a layer in its place could not do."""
        return y @ self.weight


class Drawn(nn.Linear):
    """A subclass that is only constructed otherwise."""

    def __init__(self, width: int, deviation: float = 0.1):
        self.deviation = deviation
        super().__init__(width, width)

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=self.deviation)


class Deeper(Drawn):
    pass


class Called(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) + 1


class Sized:
    """What can be asked for of another class as well."""

    def size(self):
        return self.weight.numel()


class Mixed(nn.Linear, Sized):
    pass


@pytest.mark.parametrize("kind", [Drawn, Deeper])
@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_a_subclass_that_is_only_constructed_otherwise_is_taken_and_comes_back(kind, storage):
    model = nn.Sequential(kind(8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(3, 8)
    plan = prune(model, "magnitude", 0.5)
    assert list(plan) == ["0", "2"]
    sparsify_(model, plan, storage=storage)
    expected = model(x)
    assert plan.coverage.sparse == 2
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        pollard.densify_(each)
        assert type(each[0]) is kind
        assert vars(each[0]).keys() == vars(kind(8)).keys()
        torch.testing.assert_close(each(x), expected)
    if storage == "compressed":
        loaded = pollard.load_sparse(nn.Sequential(kind(8), nn.ReLU(), nn.Linear(8, 4)), model.state_dict())
        torch.testing.assert_close(loaded(x), expected)
        assert type(pollard.densify_(loaded)[0]) is kind


@pytest.mark.parametrize("layer", [Own(4, 4), Called(4, 4), Mixed(4, 4), NonDynamicallyQuantizableLinear(4, 4)])
def test_a_subclass_that_can_do_more_is_left_dense(layer):
    with pytest.warns(LeftDense, match=f"left dense: {type(layer).__name__}"):
        assert list(prune(nn.Sequential(layer, nn.Linear(4, 1)), "magnitude", 0.5)) == ["1"]


NOTHING = {
    "other kinds": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 1, groups=2), nn.Embedding(2, 2)),
        "Conv2d x2, Embedding",
    ),
    "a subclass": (lambda: nn.Sequential(Own(2, 2)), "are Own;.*a subclass of nn.Linear with more of its own"),
    "no weights": (lambda: nn.Sequential(nn.ReLU()), "are none"),
}


@pytest.mark.parametrize(("model", "message"), NOTHING.values(), ids=NOTHING)
def test_a_model_without_linear_layers_is_told_what_it_has(model, message):
    for call in (
        lambda: prune(model(), "magnitude", 0.5),
        lambda: sparsify_(model(), {"0": Topology.full((2, 2))}),
        lambda: pollard.rigl(model(), torch.optim.SGD([torch.zeros(1)]), density=0.5, steps=10),
    ):
        with pytest.raises(NothingMatched, match=message):
            call()


UNREADY = {
    "weight_norm": (
        lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(12, 12)),
        r"parametrized by WeightNorm.*remove_parametrizations\(layer, 'weight'\)",
    ),
    "spectral_norm": (
        lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)),
        r"parametrized by SpectralNorm",
    ),
    "an own parametrization": (
        lambda: (layer := nn.Linear(12, 12), parametrize.register_parametrization(layer, "bias", nn.Identity()))[0],
        r"whose bias is parametrized by Identity",
    ),
    "old weight_norm": (
        lambda: _quietly(torch.nn.utils.weight_norm, nn.Linear(12, 12)),
        r"torch.nn.utils.weight_norm.*remove_weight_norm\(layer, 'weight'\)",
    ),
    "old spectral_norm": (
        lambda: _quietly(torch.nn.utils.spectral_norm, nn.Linear(12, 12)),
        r"torch.nn.utils.spectral_norm.*remove_spectral_norm\(layer, 'weight'\)",
    ),
    "torch's prune": (
        lambda: torch_prune.random_unstructured(nn.Linear(12, 12), "weight", 0.5),
        r"torch.nn.utils.prune.*prune.remove\(layer, 'weight'\)",
    ),
    "torch's prune twice": (
        lambda: torch_prune.l1_unstructured(
            torch_prune.random_unstructured(nn.Linear(12, 12), "weight", 0.5), "weight", 3
        ),
        r"torch.nn.utils.prune",
    ),
    "a lazy layer": (lambda: nn.LazyLinear(12), r"is lazy.*Call the model once"),
}


def _quietly(wrap, layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return wrap(layer)


@pytest.mark.parametrize(("layer", "message"), UNREADY.values(), ids=UNREADY)
def test_a_weight_that_is_made_elsewhere_is_recognised_by_name(layer, message):
    def model():
        return nn.Sequential(layer(), nn.ReLU(), nn.Linear(12, 4))

    calls = [
        lambda: prune(model(), "snip", 0.5, BATCH),
        lambda: pollard.rigl(model(), torch.optim.SGD([torch.zeros(1)]), density=0.5, steps=10),
    ]
    if "prune" not in message:  # its masks are made permanent where a plan says what is kept
        calls.append(lambda: sparsify_(model(), {"0": Topology.full((12, 12))}))
    for call in calls:
        with pytest.raises(InvalidInput, match=f"layer '0' .*{message}"):
            call()
    assert list(prune(model(), "snip", 0.5, BATCH, layers="2")) == ["2"]


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow", "wanda"])
def test_a_shared_module_keeps_its_own_parameters(criterion):
    shared = nn.Linear(12, 12)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(12, 4))
    before = list(model.parameters())
    prune(model, criterion, 0.5, BATCH)
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    assert isinstance(shared.weight, nn.Parameter)


def test_a_shared_module_is_one_layer_and_its_gradient_counts_every_use():
    shared = nn.Linear(12, 12)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(12, 4))
    plan = prune(model, "snip", 0.2, BATCH, layers="0")
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(BATCH[0]), BATCH[1]), shared.weight)
    assert torch.equal(
        plan["0"].positions(), (gradient * shared.weight).abs().flatten().topk(plan.nnz).indices.sort().values
    )
    assert list(prune(model, "magnitude", 0.2)) == ["0", "3"]


def test_tied_weights_are_refused_unless_left_out():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    model[2].weight = model[0].weight
    with pytest.raises(InvalidInput, match=r"layer '2' .* tied: 0.weight = 2.weight"):
        prune(model, "magnitude", 0.5)
    assert list(prune(model, "magnitude", 0.5, layers="1")) == ["1"]


def test_a_bare_linear_layer_is_a_plan_of_one():
    plan = prune(nn.Linear(12, 4), "snip", 0.5, BATCH)
    assert list(plan) == [""]
    assert plan.nnz == 24


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_a_layer_without_weights_is_named(method):
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 0))
    with pytest.raises(InvalidInput, match=r"an empty weight of shape \(0, 4\) in layer '1'.*layers="):
        pollard.prune(model, method, density=0.5)
    assert list(pollard.prune(model, method, density=0.5, layers="0")) == ["0"]
