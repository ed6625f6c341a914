"""Looking ahead: a few steps of training, on copies, before anything is decided."""

from __future__ import annotations

import math
from itertools import cycle, islice

import torch
from torch import Tensor

from pollard.pruning.batches import count, pieces
from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Network
from pollard.pruning.scoring import Pair
from pollard.pruning.slopes import differentiated_twice

INNER_STEPS, INNER_RATE, INNER_MOMENTUM = 3, 0.5, 0.9
MOVING_STEPS, MOVING_RATE = 10, 0.1


@measurement(cost=lambda samples, _: 2.5 * samples)
@differentiated_twice()
def meta_gradient(network: Network) -> dict[str, Tensor]:
    """The derivative `(out, in)` of the loss after 3 steps of training in gates m that the weights started with, by layer.

    `dL(w_3)/dm` with `w_0 = m * w` and `w_(k+1) = w_k - 0.5 v_(k+1)`, `v_(k+1) = 0.9 v_k + dL/dw_k`: through the steps, with
    all second derivatives. Each step takes a scoring batch of its own; a single one is cut in four.
    Source: Alizadeh et al., Prospect pruning: finding trainable weights at initialization using meta-gradients, ICLR 2022,
    section 3.
    """
    *steps, last = _batches(network, INNER_STEPS + 1)
    gates = network.gates()
    weights = {name: gate * network.weights[name] for name, gate in gates.items()}
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for pair in steps:
        found = torch.autograd.grad(
            network.loss(weights, pair), list(weights.values()), create_graph=True, allow_unused=True
        )
        for name, slope in network.reached(dict(zip(weights, found, strict=True))).items():
            # What is dropped stays dropped: its gate is 0, and no step revives it.
            velocity[name] = INNER_MOMENTUM * velocity[name] + slope * gates[name].detach()
            weights[name] = weights[name] - INNER_RATE * velocity[name]
    final = torch.autograd.grad(network.loss(weights, last), list(gates.values()), allow_unused=True)
    return network.reached(dict(zip(gates, final, strict=True)))


@measurement(cost=lambda samples, _: samples)
def movement_away(network: Network) -> dict[str, Tensor]:
    """`-sum over steps of w * dL/dw` `(out, in)` by layer, over 10 steps of gradient descent on copies of the weights.

    Positive where training moves a weight away from zero. The steps go over the scoring batches in turn, at a rate of 0.1.
    Source: Sanh, Wolf, Rush, Movement pruning: adaptive sparsity by fine-tuning, NeurIPS 2020, section 4.
    """
    weights = network.kept()
    masks = {name: gate.detach() for name, gate in network.gates().items()}
    moved = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for pair in _batches(network, MOVING_STEPS):
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        found = torch.autograd.grad(network.loss(leaves, pair), list(leaves.values()), allow_unused=True)
        for name, slope in network.reached(dict(zip(leaves, found, strict=True))).items():
            moved[name] -= weights[name] * slope
            weights[name] = weights[name] - MOVING_RATE * slope * masks[name]
    return moved


def _batches(network: Network, wanted: int) -> list[Pair]:
    """`wanted` scoring batches: those there are, in turn, or the only one cut into as many."""
    found = list(islice(network.pairs(), wanted))
    if len(found) == 1:
        found = pieces(found[0], math.ceil(count(found[0][0]) / wanted))
    return list(islice(cycle(found), wanted))
