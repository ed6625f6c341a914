"""Guided stochastic exploration: the gradients of a random few candidates, likelier where neurons are busy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pollard.arguments import require_one_of
from pollard.formats.pattern import Pattern
from pollard.formats.sampling import sample_absent
from pollard.formats.topology import Topology
from pollard.kernels.indices.candidates import candidates
from pollard.kernels.indices.rewire import positions_of
from pollard.pruning.masks import top_mask
from pollard.training.methods.change import Change
from pollard.training.methods.method import Method, method, often, require_free
from pollard.training.schedules import cosine

Guide = Literal["uniform", "grabo", "graest"]


@dataclass(frozen=True, kw_only=True)
class GuidedExploration(Method):
    """candidates: how many, as a multiple of what is kept. guide: how they are drawn."""

    candidates: float
    guide: Guide

    @property
    def sees_all(self) -> bool:
        """Those of the candidates alone."""
        return False

    def require(self, patterns: Mapping[str, Pattern]) -> None:
        """No N:M: candidates are drawn anywhere."""
        super().require(patterns)
        require_free(patterns, f"method {self.name}, whose candidates are drawn anywhere")

    def exchange(self, change: Change) -> tuple[Tensor, Tensor]:
        """Drop as many as there are candidates worth growing, up to the fraction asked for."""
        weight = change.weight
        chosen = self._chosen(change)
        stays = self.drop(replace(change, keep=min(weight.topology.grains, change.target - len(chosen))))
        # Where the density rises by more than there are candidates, nothing goes, and the rest comes blindly.
        if (short := change.target - int(np.count_nonzero(stays.numpy())) - len(chosen)) > 0:
            taken = np.union1d(weight.topology.positions().numpy(), chosen.numpy())
            blind = sample_absent(change.total, taken, short, change.generator)
            chosen = torch.from_numpy(np.union1d(chosen.numpy(), blind))
        return stays, chosen

    def _chosen(self, change: Change) -> Tensor:
        """The positions of the candidates with the largest gradients, as many as shall come, or all there are."""
        weight = change.weight
        drawn = _candidates(change, math.ceil(self.candidates * weight.topology.grains), self.guide)
        if not drawn.grains:
            return drawn.positions()
        scores = weight.by_grain(weight.passes.at(drawn).abs_())
        most = min(change.target - change.keep, drawn.grains)
        return positions_of(drawn, top_mask(scores, most, layer=weight.name))

    def update_cost(self, forward: float, dense: float) -> float:
        """The gradients of the candidates besides."""
        return self.step_cost(forward, dense) + self.candidates * forward


def _candidates(change: Change, count: int, guide: Guide) -> Topology:
    """About `count` inactive grains: drawn with replacement, doubles and active ones left out."""
    topology, passes = change.weight.topology, change.weight.passes
    if guide == "uniform":
        inputs, outputs = (
            torch.ones(topology.width, dtype=torch.float32, device="cpu"),
            torch.ones(topology.groups, dtype=torch.float32, device="cpu"),
        )
    else:
        flows = passes.flow() if guide == "grabo" else passes.signed_flow(change.generator)
        inputs, outputs = flows[0].view(topology.width, -1).sum(1), flows[1].view(topology.groups, -1).sum(1)
    return candidates(topology, count, outputs, inputs, change.generator)


@method
def gse(
    density: float,
    steps: int,
    *,
    every: int = 0,
    fraction: float = 0.2,
    until: float = 0.6,
    candidates: float = 1.0,
    guide: Guide = "grabo",
) -> Method:
    """Guided stochastic exploration: of a random set of candidates as large as what is kept, the largest `|dL/dw|` come.

    every: steps between updates; 0 for 1000, or ten in a short run. guide: candidates are drawn from a product of
    two distributions over inputs and outputs: uniform, grabo (sums of magnitudes of activations and of gradients),
    or graest (magnitudes of their sums with random signs). The fraction falls along a cosine to 0 at `until` of
    `steps`. Memory and time O(neurons + kept).
    Source: Heddes et al., Always-sparse training by growing connections with guided stochastic exploration, 2024.

    >>> gse(0.1, steps=20_000).due(1000), gse(0.1, steps=20_000).due(13_000)
    (True, False)
    """
    del density
    require_one_of("guide", guide, ("uniform", "grabo", "graest"), "grabo is a good start.")
    end = round(until * steps)
    every = often(every, 1000, end)
    return GuidedExploration(
        name="gse",
        cite="heddes2024always",
        every=every,
        end=end,
        fraction=cosine(fraction, end),
        window=1,
        anew=True,
        candidates=candidates,
        guide=guide,
    )
