"""What looks ahead or draws its own network: against explicit loops and finite differences, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from networks import BATCH, lenet
from pollard.pruning import MEASUREMENTS, Network, prune
from pollard.pruning.measurements import ahead, flow

DOUBLE = BATCH[0].double(), BATCH[1]
NAMES = ["0", "2", "4"]


def network_of(model, batch=DOUBLE, seed=0):
    return Network(model, NAMES, batch, generator=torch.Generator().manual_seed(seed))


def measured(name, network):
    with network.undisturbed():
        return MEASUREMENTS[name](network)


def quarters():
    return list(zip(DOUBLE[0].chunk(4), DOUBLE[1].chunk(4), strict=True))


def loss_after_training(model, gates):
    """Three steps of SGD with momentum by torch's own optimizer, from gated weights; the loss on a fourth batch."""
    weights = {f"{name}.weight": (model.get_submodule(name).weight * gates[name]).detach() for name in NAMES}
    leaves = {key: weight.requires_grad_() for key, weight in weights.items()}
    optimizer = torch.optim.SGD(leaves.values(), lr=0.5, momentum=0.9)
    *steps, last = quarters()
    for x, y in steps:
        optimizer.zero_grad()
        functional.cross_entropy(functional_call(model, leaves, (x,)), y).backward()
        optimizer.step()
    return float(functional.cross_entropy(functional_call(model, leaves, (last[0],)), last[1]).detach())


@pytest.mark.parametrize("batch", [DOUBLE, quarters()], ids=["one batch", "four batches"])
def test_the_meta_gradient_is_the_finite_difference_of_the_loss_after_training(batch):
    model = lenet().double()
    found = measured("meta_gradient", network_of(model, batch))
    ones = {name: torch.ones_like(model.get_submodule(name).weight) for name in NAMES}
    for name, index in [("0", (3, 2)), ("0", (20, 11)), ("2", (5, 7)), ("4", (1, 9))]:
        losses = []
        for step in (1e-5, -1e-5):
            gates = {key: gate.clone() for key, gate in ones.items()}
            gates[name][index] += step
            losses.append(loss_after_training(model, gates))
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(found[name][index]), rel=1e-4, abs=1e-8)


def test_what_is_dropped_takes_no_part_in_the_steps_ahead():
    model = lenet().double()
    network = network_of(model)
    mask = torch.rand(24, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    network.masks = {"0": mask, "2": torch.ones(16, 24) > 0, "4": torch.ones(4, 16) > 0}
    poisoned = network_of(lenet().double())
    poisoned.weights["0"] = torch.where(mask, poisoned.weights["0"], 1e6)
    poisoned.masks = network.masks
    for name in ("meta_gradient", "movement_away"):
        plain, other = measured(name, network), measured(name, poisoned)
        for layer in NAMES:
            kept = network.masks[layer]
            torch.testing.assert_close(plain[layer][kept], other[layer][kept], rtol=0, atol=0)


def test_movement_is_the_sum_over_steps_of_plain_gradient_descent():
    model = lenet().double()
    found = measured("movement_away", network_of(model))
    copy = lenet().double()
    moved = {name: torch.zeros_like(copy.get_submodule(name).weight) for name in NAMES}
    for x, y in zip(DOUBLE[0].chunk(10), DOUBLE[1].chunk(10), strict=True):
        weights = [copy.get_submodule(name).weight for name in NAMES]
        for name, weight, slope in zip(
            NAMES, weights, torch.autograd.grad(functional.cross_entropy(copy(x), y), weights), strict=True
        ):
            moved[name] -= weight.detach() * slope
            weight.data -= 0.1 * slope
    for name in NAMES:
        torch.testing.assert_close(found[name], moved[name], rtol=1e-9, atol=1e-12)
    assert ahead.MOVING_STEPS == 10


def bias_free():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()


def kernel_trace(model, inputs, gates):
    """The trace of the kernel in weights of each layer's own spread, by one gradient a sample and output unit."""
    layers = (model[0], model[2])
    spreads = [float(layer.weight.detach().std(correction=0)) for layer in layers]
    total = torch.zeros((), dtype=torch.float64)
    for x, unit in itertools.product(inputs, range(3)):
        weights = [layer.weight * gate for layer, gate in zip(layers, gates, strict=True)]
        out = (torch.relu(x @ weights[0].T) @ weights[1].T)[unit]
        slopes = torch.autograd.grad(out, weights, create_graph=True)
        parts = [
            (slope * gate * spread).square().sum() for slope, gate, spread in zip(slopes, gates, spreads, strict=True)
        ]
        total = total + sum(parts)
    return total / len(inputs)


def test_kernel_sensitivity_is_the_derivative_of_the_kernels_trace(monkeypatch):
    """Averaged over many draws of the step, the change of the outputs is the step's variance times the kernel's trace."""
    model = bias_free()
    inputs = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    gates = [torch.ones_like(layer.weight, requires_grad=True) for layer in (model[0], model[2])]
    expected = torch.autograd.grad(kernel_trace(model, inputs, gates), gates)
    network = Network(model, ["0", "2"], input_shape=(5,), generator=torch.Generator().manual_seed(0))
    own = {tuple(weight.shape): weight for weight in network.weights.values()}
    real, step, draws = flow._normal, 1e-3, 3000

    def normal(shape, network, deviation):
        """The same inputs and weights every time; only the step is drawn."""
        if tuple(shape) not in own:
            return inputs
        weight = own[tuple(shape)]
        return weight if deviation == float(weight.std(correction=0)) else real(shape, network, deviation)

    monkeypatch.setattr(flow, "KERNEL_STEP", step)
    monkeypatch.setattr(flow, "_normal", normal)
    monkeypatch.setattr(torch.Tensor, "abs", lambda self: self)
    found = [measured("kernel_sensitivity", network) for _ in range(draws)]
    for name, wanted in zip(("0", "2"), expected, strict=True):
        mean = sum(one[name].detach() for one in found) / draws / step**2
        assert torch.corrcoef(torch.stack([mean.flatten(), wanted.flatten()]))[0, 1] > 0.99
        assert float(mean.sum()) == pytest.approx(float(wanted.sum()), rel=0.1)


def test_ntk_sap_looks_at_no_weight_but_at_its_layers_spread():
    one, other = bias_free(), bias_free()
    other[0].weight.data = other[0].weight.data.flip(0)
    plans = [
        prune(model, "ntk-sap", 0.4, input_shape=(5,), generator=torch.Generator().manual_seed(0), rounds=5)
        for model in (one, other)
    ]
    assert all(torch.equal(plans[0].mask(name), plans[1].mask(name)) for name in plans[0])
