"""Top-KAST on a few weights: what the forward pass reads, what decays, and what a dense memory brings back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.recipes import Recipe
from pollard.training.methods.top_kast import top_kast
from pollard.training.sparsifier import Sparsifier
from small_weights import STORAGES, change, seen, small_weight

NAN = torch.nan


def kast(**options):
    """Of ten weights a fifth is read, and two fifths are trained."""
    return top_kast(0.2, 100, every=10, **options)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_forward_pass_reads_the_largest_until_all_that_is_left_is_read(storage):
    weight = small_weight([[1.0, -4.0, 3.0, 2.0, NAN]], storage=storage)
    kast().after_update({"small": weight}, 0)
    assert weight.active().tolist() == [False, True, True, False]
    assert weight.layer(torch.ones(1, 5, dtype=torch.float64)).item() == -1.0
    kast().after_update({"small": weight}, 99)
    assert weight.active() is not None
    kast().after_update({"small": weight}, 100)
    assert weight.active() is None


def test_whole_grains_are_read():
    weight = small_weight([[1.0, 5.0, 3.0, 0.0], [4.0, -0.5, 3.0, 2.0]], pattern="v2")
    kast().after_update({"small": weight}, 0)
    assert weight.active().tolist() == [False, False, True, True, True, True, False, False]


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_not_read_decays_faster_by_one_over_the_density(storage):
    """Jayakumar et al. 2020: half the penalty times |w|^2 for what is read, over the density for the others."""
    weight, method = small_weight([[1.0, -4.0, 3.0, 2.0, NAN]], storage=storage), kast(penalty=0.01)
    method.after_update({"small": weight}, 0)
    seen(weight, [[0.0] * 5])
    before = weight.gradient().clone()
    method.before_step({"small": weight}, 99)
    expected = torch.tensor([0.01 / 0.2 * 1.0, 0.01 * -4.0, 0.01 * 3.0, 0.01 / 0.2 * 2.0], dtype=torch.float64)
    torch.testing.assert_close(weight.gradient() - before, expected)
    method.before_step({"small": weight}, 100)
    torch.testing.assert_close(weight.gradient() - before, expected)


def test_nothing_decays_where_there_is_no_gradient_or_all_is_read():
    weight, method = small_weight([[1.0, -4.0]]), kast(penalty=0.01)
    method.before_step({"small": weight}, 1)
    assert weight.gradient() is None
    method.after_update({"small": weight}, 0)
    method.before_step({"small": weight}, 1)
    assert weight.gradient() is None
    weight.use(None)
    seen(weight, [[2.0, 3.0]])
    method.before_step({"small": weight}, 1)
    assert weight.gradient().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("pattern", ["unstructured", "v2"])
def test_with_a_dense_memory_the_largest_of_the_models_own_weights_are_trained(pattern, storage):
    """Jayakumar et al. 2020: B is the D + M largest of |theta|, which is there, not drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    own = {name: model[int(name)].weight.detach().clone() for name in ("0", "2")}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.state[model[0].weight]["momentum_buffer"] = torch.arange(1.0, 241.0).double().view(20, 12)
    sparse = pollard.top_kast(
        model, optimizer, density=0.15, steps=50, pattern=pattern, dense_memory=True, storage=storage
    )
    for name, weight in sparse.weights.items():
        scores = own[name].abs().view(-1, weight.size, own[name].shape[1]).sum(1).flatten()
        best = scores.argsort(descending=True, stable=True)[: weight.topology.grains].sort().values
        assert weight.topology.positions().tolist() == best.tolist()
        mask = weight.topology.mask()
        assert torch.equal(weight.layer.to_dense().weight, own[name] * mask)
        assert torch.equal(weight.memory, own[name])
    weight = sparse.weights["0"]
    (state,) = weight.states()
    momentum = SparseMatrix(weight.kept_of(state["momentum_buffer"]), weight.topology)
    assert torch.equal(momentum.to_dense() > 0, weight.topology.mask())


def test_a_trained_model_goes_on_as_what_is_left_of_it():
    # Of convolutions too: the weights of a call that throws them away would answer otherwise.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    x, plain = torch.randn(6, 3, 6, 6), copy.deepcopy(model)
    plan = pollard.prune(plain, "magnitude", 0.9, allocation="erk")
    expected = pollard.sparsify_(plain, plan)(x)
    sparse = pollard.top_kast(
        model,
        torch.optim.Adam(model.parameters()),
        density=0.45,
        margin=0.45,
        steps=50,
        dense_memory=True,
        allocation="erk",
    )
    for weight in sparse.weights.values():
        weight.use(None)
    torch.testing.assert_close(model(x), expected)


def test_another_first_topology_shares_out_and_the_largest_are_trained_all_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4))
    own, start = model[0].weight.detach().clone(), {"density": 0.15, "steps": 50, "criterion": "random", "seed": 1}
    sparse = pollard.top_kast(model, torch.optim.Adam(model.parameters()), dense_memory=True, **start)
    kept = model[0].topology.mask()
    assert own.abs()[kept].min() >= own.abs()[~kept].max()
    assert torch.equal(model[0].to_dense().weight, own * kept)
    assert sparse.weights["0"].memory is not None


def test_layers_that_are_sparse_already_are_told_that_their_dense_weights_are_gone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4))
    own = {"0": model[0].weight.detach().clone(), "2": model[2].weight.detach().clone()}
    pollard.sparsify_(model, pollard.prune(model, "random", 0.3))
    optimizer, method = torch.optim.SGD(model.parameters(), 0.1), kast(dense_memory=True)
    for given in ({}, {"dense": {"0": own["0"]}}):
        with pytest.raises(InvalidInput, match=r"which is sparse already.*dense="):
            Sparsifier(model, optimizer, method, **given)
    sparse = Sparsifier(model, optimizer, method, dense=own)
    kept = model[0].topology.mask()
    assert own["0"].abs()[kept].min() >= own["0"].abs()[~kept].max()
    assert sparse.weights["2"].memory is not own["2"]


def test_a_recipe_says_at_once_that_it_has_no_dense_weights():
    with pytest.raises(InvalidInput, match="dense memory"):
        Recipe(method="top-kast", method_options="dense_memory=true")


def test_without_a_dense_memory_nothing_moves_before_the_first_step():
    weight = small_weight([[1.0, NAN]])
    assert kast().begin({"small": weight}, lambda name: torch.Generator()) == {}
    assert weight.memory is None


@pytest.mark.parametrize("storage", STORAGES)
def test_the_largest_of_what_is_trained_and_remembered_are_kept(storage):
    weight = small_weight([[1.0, -0.1, NAN, NAN]], storage=storage)
    weight.memory = torch.tensor([[9.0, 9.0, -0.5, 0.05]], dtype=torch.float64)  # of what is kept, the values count
    stays, grown = kast(dense_memory=True).exchange(change(weight, 1, 2))
    assert (stays.tolist(), grown.tolist()) == ([True, False], [2])
    assert weight.memory.tolist() == [[1.0, -0.1, -0.5, 0.05]]
    stays, grown = kast(dense_memory=True).exchange(change(weight, 1, 3))
    assert (stays.tolist(), grown.tolist()) == ([True, True], [2])


def test_without_a_memory_it_drops_by_magnitude_and_grows_as_many():
    weight = small_weight([[1.0, -0.1, NAN, NAN]])
    stays, grown = kast().exchange(change(weight, 1, 2))
    assert stays.tolist() == [True, False]
    assert len(grown) == 1
    assert grown[0] > 0
