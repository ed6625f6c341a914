"""Arguments of another kind than is asked for are told what they are, before anything is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput, NothingMatched, OtherDensity, StoreError
from pollard.kernels.products.explanation import explain
from pollard.networks.architecture import ARCHITECTURES, architecture
from pollard.pruning.allocation import ALLOCATIONS, allocation
from pollard.pruning.criteria import CRITERIA
from pollard.pruning.criteria.criterion import criterion
from pollard.pruning.measurements import MEASUREMENTS
from pollard.pruning.measurements.measurement import measurement
from pollard.recipes.moving import Span, moving_method
from pollard.recipes.recipe import Recipe
from pollard.training.methods import METHODS
from pollard.training.methods.method import method
from pollard.training.options import TrainingOptions
from pollard.training.schedules import between


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: pollard.prune(model, "magnitude", 0.1),
        lambda model: pollard.sparsify_(model, {}),
        pollard.densify_,
        lambda model: pollard.rigl(model, sgd(network()), density=0.1, steps=10),
    ],
    ids=["prune", "sparsify_", "densify_", "rigl"],
)
@pytest.mark.parametrize(
    ("model", "told"),
    [(nn.Linear, "a type"), (network().state_dict(), "a OrderedDict"), (network().parameters(), "a generator")],
)
def test_a_model_that_is_none(call, model, told):
    with pytest.raises(InvalidInput, match=f"a model that is {told}; expected an nn.Module"):
        call(model)


@pytest.mark.parametrize("layers", [0, [0], [nn.Linear(1, 1)], nn.Linear])
def test_layers_that_are_no_names(layers):
    for call in (
        lambda: pollard.prune(network(), "magnitude", 0.1, layers=layers),
        lambda: pollard.rigl(model := network(), sgd(model), density=0.1, steps=10, layers=layers),
    ):
        with pytest.raises(InvalidInput, match=r"layers=.*expected names or name patterns"):
            call()
    assert list(pollard.prune(network(), "magnitude", 0.1, layers={"0"})) == ["0"]


@pytest.mark.parametrize("plan", [None, 0.1, "plan.safetensors"])
def test_a_plan_that_is_none(plan):
    with pytest.raises(InvalidInput, match=r"a plan that is a .*plan = pollard\.prune"):
        pollard.sparsify_(network(), plan)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, None])
def test_an_optimizer_that_is_none(optimizer):
    model = network()
    with pytest.raises(InvalidInput, match="expected a torch optimizer"):
        pollard.rigl(model, optimizer, density=0.1, steps=10)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("generator", [0, 7])
def test_a_seed_is_no_generator(generator):
    with pytest.raises(InvalidInput, match=rf"generator={generator}.*manual_seed"):
        pollard.prune(network(), "random", 0.1, generator=generator)


def test_a_model_that_is_dense_already():
    with pytest.raises(NothingMatched, match="a model without sparse layers"):
        pollard.densify_(network())


def test_a_file_that_is_not_there():
    with pytest.raises(StoreError, match="Check the path"):
        pollard.load_sparse(network(), "nowhere.pt")


def test_a_data_set_in_place_of_batches_is_told_of_loaders():
    examples = torch.utils.data.TensorDataset(torch.randn(8, 12), torch.randint(4, (8,)))
    with pytest.raises(InvalidInput, match="a data set goes into a DataLoader"):
        pollard.prune(network(), "snip", 0.1, examples)


def sparse():
    model = network()
    return pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.3))


def test_a_density_that_sparse_layers_do_not_keep_is_told():
    model = sparse()
    with pytest.warns(OtherDensity, match=r"at density 0\.29.*, where 0\.1 was asked"):
        pollard.rigl(model, sgd(model), density=0.1, steps=10, every=2)
    for name, density in (("rigl", 0.3), ("rigl", None), ("gmp", 0.1)):
        model = sparse()
        pollard.sparse_training(model, sgd(model), name, density=density, steps=10, every=2)


def born(density):
    return pollard.nn.SparseLinear.random(12, 24, density)


def decided(density):
    return pollard.prune(network(), "magnitude", density)


def moved(density, model=None):
    model = network() if model is None else model
    return pollard.rigl(model, sgd(model), density=density, steps=10)


def explained(density):
    return moving_method("rigl", density, Span(100, 10), {})


@pytest.mark.parametrize("density", [0, 10, -0.1, float("nan"), "0.1", [0.1], torch.tensor(0.1)])
@pytest.mark.parametrize("take", [born, decided, moved, explained, lambda density: Recipe(density=density)])
def test_what_is_no_density_is_told_in_one_way(take, density):
    with pytest.raises(InvalidInput, match="density"):
        take(density)


@pytest.mark.parametrize("take", [born, decided, moved, explained])
@pytest.mark.parametrize("density", [1, np.float32(0.25)])
def test_any_number_is_a_density(take, density):
    take(density)


@pytest.mark.parametrize("steps", [0, -5, None, "100", float("nan")])
def test_steps_are_a_number(steps):
    model = network()
    with pytest.raises(InvalidInput, match="how many steps training will take"):
        pollard.set_(model, sgd(model), density=0.1, steps=steps)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: pollard.prune(network(), "SNIP", 0.1), "snip"),
        (lambda: pollard.prune(network(), "magnitude", 0.1, allocation="ERK"), "erk"),
        (lambda: pollard.sparse_training(network(), sgd(network()), "RigL", density=0.1, steps=10), "rigl"),
        (lambda: TrainingOptions(optimizer="AdamW"), "adamw"),
        (lambda: explain("forward", (8, 8, 8), 0.5, "unstructured", dtype="bfloat"), "bfloat16"),
        (lambda: between("Cosin", 0.3, steps=10, end=0.0), "cosine"),
    ],
    ids=["criterion", "allocation", "method", "optimizer", "dtype", "schedule"],
)
def test_a_name_that_is_nearly_right_is_suggested(call, meant):
    with pytest.raises(InvalidInput, match=rf"expected one of .*Did you mean '{meant}'\?"):
        call()


def bare(model):
    return model.to("meta")


@pytest.mark.parametrize(
    "call",
    [
        lambda: pollard.prune(bare(network()), "magnitude", 0.1),
        lambda: pollard.prune(bare(network()), "snip", 0.1, (torch.randn(8, 12), torch.randint(4, (8,)))),
        lambda: pollard.prune(bare(sparse()), "magnitude", 0.1),
        lambda: pollard.prune(bare(nn.Sequential(nn.Conv2d(1, 4, 3))), "magnitude", 0.1),
        lambda: pollard.plan_from_zeros(bare(network())),
        lambda: moved(0.1, bare(network())),
    ],
    ids=["magnitude", "snip", "sparse", "convolution", "zeros", "rigl"],
)
def test_weights_that_hold_no_numbers_are_named(call):
    with pytest.raises(InvalidInput, match=r"got layer '0\S*' on meta, which holds no numbers"):
        call()


def test_a_decision_that_looks_at_no_numbers_needs_none():
    assert pollard.prune(bare(network()), "random", 0.25).nnz == round(0.25 * (12 * 24 + 24 * 4))


def named(name):
    """A function of this module, of that name."""

    def made(*args):
        return args

    made.__name__ = name
    return made


# Each kind of member, how one joins, and the name of one that is there.
MEMBERS = {
    "criterion": (criterion(needs=("weight",)), "snip", CRITERIA),
    "measurement": (measurement, "gradient", MEASUREMENTS),
    "allocation": (allocation(), "erk", ALLOCATIONS),
    "method": (method, "rigl", METHODS),
    "network": (architecture("resnet-20"), "resnet-20", ARCHITECTURES),
}


@pytest.mark.parametrize(("join", "name", "members"), MEMBERS.values(), ids=MEMBERS)
def test_a_name_that_another_module_has_is_refused(join, name, members, request):
    before = dict(members)
    with pytest.raises(InvalidInput, match=f"a second {request.node.callspec.id} called '{name}'"):
        join(named(name))
    assert members == before
