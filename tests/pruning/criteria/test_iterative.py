from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import BATCH, lenet
from pollard.pruning import prune

DOUBLE = BATCH[0].double(), BATCH[1]


def in_rounds(model, density, rounds, *, recover):
    """The published loop, on one flat mask."""
    linear = [module for module in model if isinstance(module, nn.Linear)]
    original = torch.cat([module.weight.detach().flatten() for module in linear])
    sizes = [module.weight.numel() for module in linear]
    mask = torch.ones_like(original)
    for k in range(1, rounds + 1):
        kept = [
            part.view_as(module.weight).clone().requires_grad_()
            for part, module in zip((original * mask).split(sizes), linear, strict=True)
        ]
        hidden = DOUBLE[0]
        for index, (weight, module) in enumerate(zip(kept, linear, strict=True)):
            hidden = functional.linear(hidden, weight, module.bias)
            hidden = hidden.relu() if index < len(kept) - 1 else hidden
        gradients = torch.autograd.grad(functional.cross_entropy(hidden, DOUBLE[1]), kept)
        scores = (original * torch.cat([gradient.flatten() for gradient in gradients])).abs()
        scores = scores if recover else torch.where(mask > 0, scores, -1.0)
        order = torch.sort(scores, descending=True, stable=True).indices
        mask = torch.zeros_like(mask)
        mask[order[: round(density ** (k / rounds) * mask.numel())]] = 1
    return mask.bool()


@pytest.mark.parametrize(("criterion", "recover"), [("iter-snip", False), ("force", True)])
@pytest.mark.parametrize(("density", "rounds"), [(0.1, 5), (0.02, 12)])
def test_rounds_are_the_published_loop_index_for_index(criterion, recover, density, rounds):
    model = lenet().double()
    plan = prune(model, criterion, density, DOUBLE, rounds=rounds)
    found = torch.cat([plan.mask(name).flatten() for name in plan])
    assert torch.equal(found, in_rounds(model, density, rounds, recover=recover))


def test_force_brings_weights_back_that_iter_snip_has_lost():
    model = lenet().double()
    plans = {name: prune(model, name, 0.02, DOUBLE) for name in ("snip", "iter-snip", "force")}
    masks = {name: torch.cat([plan.mask(layer).flatten() for layer in plan]) for name, plan in plans.items()}
    assert not torch.equal(masks["iter-snip"], masks["force"])
    assert not torch.equal(masks["snip"], masks["iter-snip"])
    assert len({int(mask.sum()) for mask in masks.values()}) == 1
