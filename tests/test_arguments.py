"""Arguments of another kind than is asked for are told what they are, before anything is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput, NothingMatched, OtherDensity, StoreError


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
    for method, density in (("rigl", 0.3), ("rigl", None), ("gmp", 0.1)):
        model = sparse()
        pollard.sparse_training(model, sgd(model), method, density=density, steps=10, every=2)
