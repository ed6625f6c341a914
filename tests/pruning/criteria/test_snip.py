from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import BATCH, lenet
from pollard.pruning import prune


def snip_masks(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor, density: float) -> list[torch.Tensor]:
    """By the definition: a gate on every connection, the derivative by the gates, one sorted list of everything."""
    linear = [module for module in model if isinstance(module, nn.Linear)]
    gates = [torch.ones_like(module.weight, requires_grad=True) for module in linear]
    hidden = x
    for index, (module, gate) in enumerate(zip(linear, gates, strict=True)):
        hidden = hidden @ (gate * module.weight).T + module.bias
        if index < len(linear) - 1:
            hidden = hidden.clamp(min=0)
    loss = -functional.log_softmax(hidden, 1)[torch.arange(len(y)), y].mean()
    loss.backward(inputs=gates)
    total = sum(gate.grad.abs().sum() for gate in gates)
    scores = [(score / total).item() for gate in gates for score in gate.grad.abs().flatten()]
    kept = sorted(range(len(scores)), key=lambda position: (-scores[position], position))[
        : round(density * len(scores))
    ]
    flat = torch.zeros(len(scores), dtype=torch.bool)
    flat[kept] = True
    sizes = [gate.numel() for gate in gates]
    return [part.view(gate.shape) for part, gate in zip(flat.split(sizes), gates, strict=True)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_snip_is_its_definition_index_for_index(seed, density):
    model = lenet(seed).double()
    x, y = BATCH[0].double(), BATCH[1]
    plan = prune(model, "snip", density, (x, y))
    for name, mask in zip(plan, snip_masks(model, x, y, density), strict=True):
        assert torch.equal(plan.mask(name), mask)


@pytest.mark.filterwarnings("ignore::pollard.errors.ScoresTie")
def test_snip_breaks_ties_by_index_as_the_definition_does():
    # One sample of ones and zeros, through weights that come in pairs: every score exists twice, and many are zero.
    model = lenet().double()
    with torch.no_grad():
        model[0].weight[:, 1::2] = model[0].weight[:, ::2]
    x, y = torch.tensor([[1.0] * 6 + [0.0] * 6], dtype=torch.float64), torch.tensor([2])
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    gradients = torch.autograd.grad(functional.cross_entropy(model(x), y), weights)
    scores = torch.cat([(g * w).abs().flatten() for g, w in zip(gradients, weights, strict=True)])
    cut = []
    for count in range(60, 736, 13):
        plan = prune(model, "snip", count / 736, (x, y))
        masks = [plan.mask(name) for name in plan]
        assert all(map(torch.equal, masks, snip_masks(model, x, y, count / 736)))
        kept = torch.cat([mask.flatten() for mask in masks])
        cut += [scores[kept].min().item()] if scores[kept].min() == scores[~kept].max() else []
    assert 0 in cut, "a threshold should cut through the zeros"
    assert max(cut) > 0, "and another through a pair"


def test_snip_scores_of_vectors_are_sums_over_their_weights():
    model = lenet()
    plan = prune(model, "snip", 0.3, BATCH, allocation="uniform", pattern="v4")
    functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
    for name in ("0", "2", "4"):
        weight = model.get_submodule(name).weight
        score = (weight * weight.grad).abs().view(-1, 4, weight.shape[1]).sum(1).flatten()
        kept = torch.zeros(score.numel(), dtype=torch.bool)
        kept[plan[name].positions()] = True
        assert score[kept].min() >= score[~kept].max()
