"""Operator splitting: the weights that reproduce a layer's outputs, and those that are few, drawn together until they are one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pollard.formats.pattern import Pattern
from pollard.pruning.criteria.criterion import criterion
from pollard.pruning.criteria.reconstruction import heard, hessian
from pollard.pruning.masks import best_grains

PENALTY, LARGEST_PENALTY = 0.1, 1e6
# Steps in all, between two looks at the support, and before a support that hardly moves is taken.
STEPS, LOOK, LEAST_STEPS = 300, 3, 30
# Of the support, how much has changed since the last look, and what the penalty is multiplied by then; HARDLY is little.
RISES, LAST_RISE, HARDLY = ((0.1, 1.3), (0.005, 1.2)), 1.1, 0.0003
FALL = 5.0
REFINEMENTS = 10
# From weights `(out, in)` to which of them a projection keeps.
Choice = Callable[[Tensor], Tensor]


@criterion(needs=("weight", "input_gram"), allocation="uniform", cite="meng2024alps")
def alps(weight: Tensor, input_gram: Tensor) -> Tensor:
    """Score `w_ij^2 H_jj`: twice the loss of the layer's outputs when this weight alone goes and no other adapts.

    `alps.solve` starts from the best of these, in inputs scaled to `H_jj = 1`, and finds the support by ADMM:
    `B = (H + rho)^-1 (H W - V + rho D)`, `D` the largest of `B + V / rho`, `V += rho (B - D)`, with a penalty rho that grows
    the faster, the more of the support changes. Ten steps of conjugate gradients then find the weights on it.
    Source: Meng, Behdin, Wang, Mazumder, ALPS: improved optimization for highly sparse one-shot pruning for large language
    models, NeurIPS 2024, algorithms 1 and 2, and the authors' code.

    >>> alps(weight=torch.tensor([[2.0, 1.0]]), input_gram=torch.tensor([[1.0, 0.0], [0.0, 9.0]])).round(decimals=4)
    tensor([[ 8.4000, 18.1000]], dtype=torch.float64)
    """
    return heard(weight, input_gram).square() * hessian(input_gram).diagonal()


@alps.solved_by
def _split(weight: Tensor, count: int, pattern: Pattern, allowed: Tensor, input_gram: Tensor) -> tuple[Tensor, Tensor]:
    curvature = hessian(input_gram)
    scale = curvature.diagonal().sqrt()
    curvature = curvature / scale / scale[:, None]
    wanted = heard(weight, input_gram) * scale
    positions = torch.empty(0, dtype=torch.int64, device="cpu")

    def largest(weights: Tensor) -> Tensor:
        nonlocal positions
        scores = pattern.grain_sum(weights.square()).masked_fill(~allowed, -torch.inf)
        positions = best_grains(scores.flatten(), count, pattern)
        kept = torch.zeros(scores.numel(), dtype=torch.bool, device="cpu")
        kept[positions] = True
        return pattern.spread(kept.view(scores.shape))

    found = _Splitting(wanted, curvature, largest).solved()
    kept = largest(found)
    return positions, _on_support(wanted @ curvature, curvature, kept, found) / scale


class _Splitting:
    """ADMM over `wanted` `(out, in)`: weights that reproduce its outputs, a sparse copy, and what keeps them together."""

    def __init__(self, wanted: Tensor, curvature: Tensor, largest: Choice) -> None:
        self.wanted, self.outputs, self.largest = wanted, wanted @ curvature, largest
        self.values, self.vectors = torch.linalg.eigh(curvature)
        self.penalty, self.rising = PENALTY, False
        self._restart()
        self.seen = self.kept

    def solved(self) -> Tensor:
        """The weights once the support stays, or after `STEPS`."""
        inverse = self._inverse()
        for step in range(1, STEPS + 1):
            self._step(inverse)
            if step % LOOK == 0:
                changed = int((self.kept != self.seen).sum()) / max(1, int(self.kept.sum()))
                self.seen = self.kept
                if (self.rising and not changed) or (step > LEAST_STEPS and changed < HARDLY):
                    break
                self._adapt(changed)
                inverse = self._inverse()
        return self.full

    def _restart(self) -> None:
        self.kept = self.largest(self.wanted)
        self.full, self.sparse, self.dual = self.wanted, self.wanted * self.kept, torch.zeros_like(self.wanted)

    def _inverse(self) -> Tensor:
        found: Tensor = (self.vectors / (self.values + self.penalty)) @ self.vectors.T
        return found

    def _step(self, inverse: Tensor) -> None:
        self.full = (self.outputs - self.dual + self.penalty * self.sparse) @ inverse
        shifted = self.full + self.dual / self.penalty
        self.kept = self.largest(shifted)
        self.sparse = shifted * self.kept
        self.dual = self.dual + self.penalty * (self.full - self.sparse)

    def _adapt(self, changed: float) -> None:
        """Raises the penalty; while it has never moved much of the support, it is too large to begin with, and falls."""
        rise = next((by for least, by in RISES if changed > least), None)
        if rise is None and not self.rising:
            self.penalty /= FALL
            if changed:
                self._restart()
            return
        self.rising = True
        self.penalty = min(LARGEST_PENALTY, self.penalty * (rise or LAST_RISE))


def _on_support(outputs: Tensor, curvature: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    """Weights where `kept` that minimise `1/2 d^T H d`, row by row: conjugate gradients, preconditioned by the scale of inputs."""
    found = start * kept
    residual = (outputs - found @ curvature) * kept
    direction, size = residual, residual.square().sum(1, keepdim=True)
    for _ in range(REFINEMENTS):
        ahead = direction @ curvature
        step = _quotient(size, (direction * ahead).sum(1, keepdim=True))
        found = found + step * direction
        residual = (residual - step * ahead) * kept
        last, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + _quotient(size, last) * direction
    return found


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """Zero where there is nothing left to do."""
    return torch.where(below > 0, above / below.clamp_min(1e-300), 0.0)
