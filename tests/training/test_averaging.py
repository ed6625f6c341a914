"""An average follows where weights stand: against the dense mean, on both storages, with every kind of movement."""

import copy

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput

X = torch.randn(64, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def started(method, storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 4)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = {} if method == "static" else {"every": 3}
    return model, getattr(pollard, method)(model, optimizer, density=0.3, steps=40, storage=storage, **options)


def dense(model):
    return [pollard.densify_(copy.deepcopy(model))[each].weight.detach() for each in (0, 3)]


def kept(model):
    return [model[each].topology.mask() for each in (0, 3)]


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("decay", [0.9, None])
@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize("method", ["static", "set_", "rigl", "gmp"])
def test_the_average_is_the_formula_at_each_place(method, storage, decay, use_buffers):
    model, sparse = started(method, storage)
    average, expected = pollard.Averaged(model, decay, use_buffers=use_buffers), None
    for step in range(24):
        sparse.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        sparse.step()
        average.update_parameters(model)
        share = 1 / (step + 1) if decay is None else 1 - decay
        now = dense(model)
        before = expected or now
        expected = [(was + share * (is_ - was)) * mask for was, is_, mask in zip(before, now, kept(model), strict=True)]
        for ours, theirs, mask, mine in zip(
            dense(average.module), expected, kept(model), kept(average.module), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
            assert torch.equal(mask, mine)
    assert method == "static" or sparse.updates > 3
    state = average.state_dict()
    again = pollard.Averaged(started("static", storage)[0], decay)
    if storage == "compressed":
        again.load_state_dict(state)
        torch.testing.assert_close(again.module.eval()(X), average.module.eval()(X))
    assert average.module[0].topology is not None


def test_the_model_itself_is_left_alone():
    model, sparse = started("set_", "compressed")
    average = pollard.Averaged(model)
    before = copy.deepcopy(model.state_dict())
    average.update_parameters(model)
    assert all(torch.equal(entry, model.state_dict()[name]) for name, entry in before.items())
    nn.functional.cross_entropy(model(X), Y).backward()
    sparse.step()


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(InvalidInput, match="decay"):
        pollard.Averaged(nn.Linear(2, 2), decay)


def test_an_average_of_a_dense_model_does_not_take_a_sparse_one():
    model = nn.Sequential(nn.Linear(20, 30))
    average = pollard.Averaged(model)
    pollard.sparsify_(model, pollard.prune(model, "magnitude", 0.5))
    with pytest.raises(InvalidInput, match="after the model was made sparse"):
        average.update_parameters(model)
