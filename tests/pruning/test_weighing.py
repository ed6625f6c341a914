"""An allocation that asks for scores of its own: outlier weighed layerwise sparsity goes by Wanda's, whoever decides."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from networks import BATCH, generator, lenet
from pollard.formats.topology import Topology
from pollard.pruning import prune
from pollard.pruning.allocation import owl, whole_grains
from pollard.pruning.budget import Layer


def densities(plan):
    return {name: topology.density for name, topology in plan.items()}


def outliers():
    """A network of which the last layer has weights that stand out."""
    model = lenet()
    with torch.no_grad():
        model[4].weight[:, 5] *= 40
    return model


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "random", "ria", "sparsegpt"])
def test_owl_shares_out_by_the_scores_of_wanda_whoever_decides(criterion):
    model = outliers()
    by_wanda = prune(model, "wanda", 0.4, BATCH, allocation="owl")
    scores = {"0": BATCH[0], "2": model[:2](BATCH[0]), "4": model[:4](BATCH[0])}
    layers = {
        name: Layer(tuple(model.get_submodule(name).weight.shape), scores=_wanda(model.get_submodule(name), x))
        for name, x in scores.items()
    }
    expected = whole_grains(layers, owl(layers, 0.4), 0.4)
    assert {name: topology.nnz for name, topology in by_wanda.items()} == expected
    assert by_wanda["4"].density == max(densities(by_wanda).values())
    plan = prune(model, criterion, 0.4, BATCH, allocation="owl", generator=generator())
    assert densities(plan) == densities(by_wanda)
    assert (plan.criterion, plan.allocation) == (criterion, "owl")


def _wanda(layer, inputs):
    return (layer.weight.abs() * inputs.norm(dim=0)).detach().flatten()


def test_owl_looks_at_what_is_left_and_never_at_inverted_scores():
    model = outliers()
    plain = prune(model, "magnitude", 0.4, BATCH, allocation="owl")
    assert densities(prune(model, "magnitude", 0.4, BATCH, allocation="owl", invert=True)) == densities(plain)
    # Without the weights that stand out, their layer is as the others.
    within = {name: Topology.from_mask(torch.ones_like(plain.mask(name))) for name in plain}
    within["4"] = Topology.from_mask(torch.arange(16).expand(4, 16) != 5)
    left = prune(model, "magnitude", 0.4, BATCH, allocation="owl", within=within, rounds=2)
    assert left["4"].density < plain["4"].density
    assert left.nnz == plain.nnz


def test_options_of_owl_are_given_by_partial():
    plan = prune(outliers(), "wanda", 0.4, BATCH, allocation=partial(owl, spread=0.01))
    assert max(densities(plan).values()) - min(densities(plan).values()) < 0.05
    assert plan.allocation == "owl"
