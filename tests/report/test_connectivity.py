"""The error along the line between two networks: beside dense interpolation, and with norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pollard
from pollard.errors import InvalidInput
from pollard.nn import SparseLinear
from pollard.report.connectivity import Line, straight_line

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(3))
Y = torch.arange(64) % 4


def loss(model):
    return nn.functional.cross_entropy(model(X), Y).item()


def network(seed=0, *, storage="compressed", norm=False):
    """What one plan keeps, with values by `seed`."""
    torch.manual_seed(0)
    between = [nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout()] if norm else [nn.ReLU()]
    model = nn.Sequential(nn.Linear(12, 24), *between, nn.Linear(24, 4))
    plan = pollard.prune(model, "random", 0.4, generator=torch.Generator().manual_seed(1))
    pollard.sparsify_(model, plan, storage=storage)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        if storage == "masked":
            for layer in (model[0], model[-1]):
                layer.weight.masked_fill_(~layer.mask, 0.0)
    return model


@pytest.mark.parametrize("storage", ["compressed", "masked"])
def test_it_is_the_line_between_the_dense_networks(storage):
    first, second = network(1, storage=storage), network(2, storage=storage)
    line = straight_line(first, second, loss, points=5)
    assert line.alphas == (0.0, 0.25, 0.5, 0.75, 1.0)
    ends = [pollard.densify_(copy.deepcopy(model)) for model in (first, second)]
    assert (line.errors[0], line.errors[-1]) == (loss(first), loss(second))
    for alpha, found in zip(line.alphas, line.errors, strict=True):
        one, other = (end.state_dict() for end in ends)
        twin = copy.deepcopy(ends[0])
        twin.load_state_dict({name: (1 - alpha) * one[name] + alpha * other[name] for name in one})
        assert found == pytest.approx(loss(twin), rel=1e-5)


def test_a_convex_error_has_no_barrier_but_what_ends_differ_by():
    first = nn.Sequential(SparseLinear.random(12, 4, density=0.5))
    second = copy.deepcopy(first)
    second[0].values.data.normal_()
    line = straight_line(first, second, loss)
    assert line.barrier == pytest.approx(abs(line.errors[0] - line.errors[-1]) / 2)


def test_hidden_units_in_another_order_are_far_away():
    first = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))
    second = copy.deepcopy(first)
    order = torch.arange(23, -1, -1)
    with torch.no_grad():
        for parameter in (second[0].weight, second[0].bias):
            parameter.copy_(parameter[order])
        second[2].weight.copy_(second[2].weight[:, order])
    target = first(X).detach()
    line = straight_line(first, second, lambda model: float((model(X) - target).square().mean()))
    assert line.errors[0] == 0.0
    assert line.errors[-1] == pytest.approx(0.0, abs=1e-10)
    assert line.barrier > 0.01
    assert line.barrier == max(line.errors) - (line.errors[0] + line.errors[-1]) / 2
    assert Line((0.0, 1.0), (0.5, 0.5)).barrier == 0.0


def test_both_networks_stay_as_they_are():
    first, second = network(1, norm=True).train(), network(2, norm=True).eval()
    before = [copy.deepcopy(model.state_dict()) for model in (first, second)]
    straight_line(first, second, loss, points=3, batches=[X])
    for model, state in zip((first, second), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (first.training, second.training) == (True, False)
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_norms_get_statistics_of_their_own_at_every_point():
    first, second = network(1, norm=True), network(2, norm=True)
    second[1].running_mean.fill_(torch.nan)  # nobody looks at them
    held = []

    def note(model):
        norm = model[1]
        held.append((norm.running_mean.clone(), norm.running_var.clone(), model[0](X)))
        assert not any(module.training for module in model.modules())
        assert norm.momentum == first[1].momentum
        return loss(model)

    straight_line(first, second, note, points=3, batches=[X])
    for running_mean, running_var, given in held:
        torch.testing.assert_close(running_mean, given.mean(0))
        torch.testing.assert_close(running_var, given.var(0))
    pairs = ((x, None) for x in X.split(32))  # an iterator, which serves once
    halves = straight_line(first, second, loss, points=3, batches=pairs)
    again = straight_line(first, second, loss, points=3, batches=list(X.split(32)))
    assert halves == again


def test_a_network_that_could_not_be_dense_has_a_line():
    first = nn.Sequential(SparseLinear.random(100_000, 100_000, density=1e-7))
    second = copy.deepcopy(first)
    for parameter in second.parameters():
        parameter.data.neg_()
    x = torch.ones(1, 100_000)
    line = straight_line(first, second, lambda model: float(model(x).abs().sum()), points=3)
    assert line.errors[0] == line.errors[2] > line.errors[1] == 0.0


def other_topology():
    model = network(1)
    kept = pollard.prune(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)), "random", 0.4)
    return pollard.sparsify_(pollard.densify_(model), kept)


def other_buffer():
    model = network(1)
    model.register_buffer("scale", torch.ones(1))
    return model


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (lambda: nn.Sequential(nn.Linear(12, 4)), "two networks of the same parameters"),
        (lambda: network(1, storage="masked"), "two networks of the same parameters"),
        (lambda: network(1, norm=True), "two networks of the same parameters"),
        (other_buffer, "two networks of the same parameters"),
        (other_topology, "the same topologies"),
    ],
)
def test_networks_that_are_not_alike_are_refused(second, told):
    with pytest.raises(InvalidInput, match=told):
        straight_line(network(0), second(), loss)
    with pytest.raises(InvalidInput, match=told):
        straight_line(second(), network(0), loss)


def test_bad_choices_are_told():
    first, second = network(1, norm=True), network(2, norm=True)
    with pytest.raises(InvalidInput, match="at least 3"):
        straight_line(first, second, loss, points=2)
    with pytest.raises(InvalidInput, match="batches to take them from"):
        straight_line(first, second, loss)
    with pytest.raises(InvalidInput, match="at least one batch"):
        straight_line(first, second, loss, batches=[])
    one, other = other_buffer(), other_buffer()
    other.scale.fill_(2.0)
    with pytest.raises(InvalidInput, match="buffer 'scale'"):
        straight_line(one, other, loss)
