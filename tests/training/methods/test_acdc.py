"""AC/DC against the same in plain torch: dense weights, a mask of ones or of the largest, and a momentum that is set to zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import pollard
from pollard.training.methods import METHODS

STEPS, DENSITY = 60, 0.2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 4)).double()


def step_of(model, number):
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(16, 12, generator=draw, dtype=torch.float64)
    nn.functional.cross_entropy(model(x), (x[:, :4]).argmax(1)).backward()


def largest(weights, density):
    """One ranking of the magnitudes of all layers."""
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    least = sizes.sort(descending=True).values[round(density * len(sizes)) - 1]
    return [(weight.abs() >= least).double() for weight in weights]


def under(masks, weights, optimizer):
    """What is masked is zero, in the weights and in the optimizer's state."""
    for weight, mask in zip(weights, masks, strict=True):
        for tensor in (weight, *(entry for key, entry in optimizer.state[weight].items() if key != "step")):
            if tensor is not None:
                tensor.mul_(mask)


def in_plain_torch(made, begin):
    """Dense all the time, with masks."""
    model = network()
    optimizer = begin(model.parameters())
    weights = [model[0].weight, model[2].weight]
    masks = [torch.ones_like(weight) for weight in weights]
    for number in range(1, STEPS + 1):
        optimizer.zero_grad()
        step_of(model, number)
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.grad.mul_(mask)
            optimizer.step()
            before, now = made.density(number - 1), made.density(number)
            if now != before:
                masks = largest(weights, now) if now < before else [torch.ones_like(weight) for weight in weights]
            under(masks, weights, optimizer)
            for state in [optimizer.state[weight] for weight in weights] if now > before else []:
                for key in {"momentum_buffer", "exp_avg"} & {*state}:
                    state[key] = None if state[key] is None else torch.zeros_like(state[key])
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("storage", ["compressed", "masked"])
@pytest.mark.parametrize(
    "begin",
    [lambda p: optim.SGD(p, 0.1, momentum=0.9), lambda p: optim.SGD(p, 0.1), lambda p: optim.Adam(p, 0.01)],
    ids=["momentum", "sgd", "adam"],
)
def test_it_is_dense_training_under_a_mask_that_comes_and_goes(begin, storage):
    model = network()
    optimizer = begin(model.parameters())
    sparse = pollard.acdc(model, optimizer, density=DENSITY, steps=STEPS, storage=storage)
    kept = []
    for number in range(1, STEPS + 1):
        optimizer.zero_grad()
        step_of(model, number)
        sparse.step()
        kept.append(sum(weight.topology.nnz for weight in sparse.weights.values()))
    made = METHODS["acdc"](DENSITY, STEPS)
    assert kept == [round(made.density(number) * 480) for number in range(1, STEPS + 1)]
    assert set(kept) == {96, 480}
    pollard.densify_(model)
    for ours, theirs in zip(model.parameters(), in_plain_torch(made, begin), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-9, atol=1e-12)


def test_the_last_phase_holds_no_more_than_what_is_kept():
    model = network()
    optimizer = optim.Adam(model.parameters(), 0.01)
    sparse = pollard.acdc(model, optimizer, density=DENSITY, steps=STEPS)
    for number in range(1, STEPS + 1):
        optimizer.zero_grad()
        step_of(model, number)
        sparse.step()
    for weight in sparse.weights.values():
        (state,) = weight.states()
        held = [weight.parameter, *(entry for entry in state.values() if entry.dim())]
        assert {entry.untyped_storage().nbytes() for entry in held} == {8 * weight.topology.nnz}
