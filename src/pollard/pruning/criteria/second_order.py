"""Second order: what the loss rises by, `1/2 d^T H d`, when weights go and d is what that changes.

H is replaced by something that can be had: a diagonal, or the empirical Fisher matrix `F = a I + (1/N) G^T G` of the
gradients G `(N, weights)` of single samples, whose inverse is never formed:
`F^-1 v = (v - G^T (a N I + G G^T)^-1 G v) / a`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pollard.formats.pattern import Pattern
from pollard.pruning.criteria.criterion import criterion
from pollard.pruning.masks import best_grains

DAMPING = 1e-5
BLOCK = 1000
AT_ONCE = 1 << 14


@criterion(needs=("weight", "gauss_newton_diagonal"), across_layers=True, cite="lecun1989obd")
def obd(weight: Tensor, gauss_newton_diagonal: Tensor) -> Tensor:
    """Score `1/2 h w^2`, h the diagonal of the Gauss-Newton matrix: the rise of the loss at a minimum, to second order.

    The paper back-propagates an approximation of h, which neglects how units interact; here h is exact.
    Source: LeCun, Denker, Solla, Optimal brain damage, NeurIPS 1989, eq. 5 and the Levenberg-Marquardt form of eq. 11.

    >>> obd(weight=torch.tensor([[3.0, -4.0]]), gauss_newton_diagonal=torch.tensor([[2.0, 1.0]]))
    tensor([[9., 8.]])
    """
    return gauss_newton_diagonal * weight.square() / 2


@criterion(needs=("weight", "fisher_diagonal"), across_layers=True, cite="theis2018faster")
def fisher(weight: Tensor, fisher_diagonal: Tensor) -> Tensor:
    """Score `1/2 f w^2`, f the mean square of the samples' gradients: OBD with the empirical Fisher as the Hessian.

    Source: Theis, Korshunova, Tejani, Huszar, Faster gaze prediction with dense networks and Fisher pruning, 2018, eq. 9.

    >>> fisher(weight=torch.tensor([[3.0, -4.0]]), fisher_diagonal=torch.tensor([[2.0, 1.0]]))
    tensor([[9., 8.]])
    """
    return fisher_diagonal * weight.square() / 2


@criterion(needs=("weight", "hessian_diagonal"), across_layers=True, cite="bekas2007diagonal")
def hutchinson(weight: Tensor, hessian_diagonal: Tensor) -> Tensor:
    """Score `1/2 |h| w^2`, h Hutchinson's estimate of the Hessian's own diagonal, negative curvature included.

    >>> hutchinson(weight=torch.tensor([[3.0, -4.0]]), hessian_diagonal=torch.tensor([[2.0, -1.0]]))
    tensor([[9., 8.]])
    """
    return hessian_diagonal.abs() * weight.square() / 2


@criterion(needs=("weight", "sample_gradients"), across_layers=True, cite="singh2020woodfisher")
def woodfisher(weight: Tensor, sample_gradients: Tensor) -> Tensor:
    """Score `w^2 / (2 [F^-1]_ii)`, F the empirical Fisher in blocks of 1000 consecutive weights, damped by 1e-5.

    `woodfisher.solve` then moves the kept weights of each block to where `1/2 d^T F d` is smallest. The paper adds up the
    moves that each removal would ask for alone; all removals together are asked here, which costs no more.
    Source: Singh, Alistarh, WoodFisher: efficient second-order approximation for neural network compression, NeurIPS 2020,
    eq. 3 and 8.
    """
    return _saliency(weight, sample_gradients, BLOCK)


@woodfisher.solved_by
def _by_blocks(
    weight: Tensor, count: int, pattern: Pattern, allowed: Tensor, sample_gradients: Tensor
) -> tuple[Tensor, Tensor]:
    return _chosen(weight, count, pattern, allowed, sample_gradients, block=BLOCK)


@criterion(needs=("weight", "sample_gradients"), across_layers=True, cite="frantar2021mfac")
def m_fac(weight: Tensor, sample_gradients: Tensor) -> Tensor:
    """Score `w^2 / (2 [F^-1]_ii)`, F the empirical Fisher of a whole layer, damped by 1e-5.

    `m_fac.solve` moves what is kept as `woodfisher.solve` does, over the whole layer at once. The paper's recursion over
    samples and the closed form here are the same matrix.
    Source: Frantar, Kurtic, Alistarh, M-FAC: efficient matrix-free approximations of second-order information, NeurIPS
    2021, section 3.1.
    """
    return _saliency(weight, sample_gradients, weight.numel())


@m_fac.solved_by
def _whole(
    weight: Tensor, count: int, pattern: Pattern, allowed: Tensor, sample_gradients: Tensor
) -> tuple[Tensor, Tensor]:
    return _chosen(weight, count, pattern, allowed, sample_gradients, block=weight.numel())


def _saliency(weight: Tensor, sample_gradients: Tensor, block: int) -> Tensor:
    parts = [inverse_diagonal(part) for part in sample_gradients.flatten(1).split(block, 1)]
    return weight.double().square() / (2 * torch.cat(parts).view(weight.shape))


def _chosen(
    weight: Tensor, count: int, pattern: Pattern, allowed: Tensor, sample_gradients: Tensor, *, block: int
) -> tuple[Tensor, Tensor]:
    scores = pattern.grain_sum(_saliency(weight, sample_gradients, block)).masked_fill(~allowed, -torch.inf)
    positions = best_grains(scores.flatten(), count, pattern)
    grains = torch.zeros(scores.numel(), dtype=torch.bool, device="cpu")
    grains[positions] = True
    kept = pattern.spread(grains.view(scores.shape)).flatten()
    parts = zip(
        weight.double().flatten().split(block),
        sample_gradients.flatten(1).split(block, 1),
        kept.split(block),
        strict=True,
    )
    return positions, torch.cat([refit(w, g, k) for w, g, k in parts]).view(weight.shape)


def inverse_diagonal(gradients: Tensor, damping: float = DAMPING) -> Tensor:
    """The diagonal `(weights,)` of `F^-1`, of gradients `(N, weights)`.

    >>> inverse_diagonal(torch.tensor([[1.0, 0.0]]), damping=1.0)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    factor = _factor(gradients, damping)
    parts = [torch.linalg.solve_triangular(factor, part, upper=False).square_().sum(0) for part in _doubled(gradients)]
    found: Tensor = (1 - torch.cat(parts)) / damping
    return found.clamp_min(torch.finfo(found.dtype).tiny)


def refit(weight: Tensor, gradients: Tensor, kept: Tensor, damping: float = DAMPING) -> Tensor:
    """The vector that is zero where not `kept` and loses least, `1/2 (new - weight)^T F (new - weight)`.

    >>> refit(torch.tensor([1.0, 2.0]).double(), torch.tensor([[1.0, 1.0]]), torch.tensor([True, False]), damping=1.0)
    tensor([2., 0.], dtype=torch.float64)
    """
    inside, removed = gradients[:, kept].double(), weight.masked_fill(kept, 0.0)
    # What the removed weights did to each sample's loss, to be made up for by those that are kept.
    lost = torch.stack([part @ w for part, w in zip(_doubled(gradients), removed.split(AT_ONCE), strict=True)]).sum(0)
    pull = inside.T @ lost / len(gradients)
    made_up = (
        pull - inside.T @ torch.cholesky_solve((inside @ pull)[:, None], _factor(inside, damping))[:, 0]
    ) / damping
    new = torch.zeros_like(weight)
    new[kept] = weight[kept] + made_up
    return new


def _doubled(gradients: Tensor) -> Iterator[Tensor]:
    """`gradients` in float64, so many columns at once: all of them together would be twice the memory again."""
    return (part.double() for part in gradients.split(AT_ONCE, 1))


def _factor(gradients: Tensor, damping: float) -> Tensor:
    """The lower Cholesky factor of `a N I + G G^T`."""
    gram = torch.stack([part @ part.T for part in _doubled(gradients)]).sum(0)
    gram.diagonal().add_(damping * len(gradients))
    found: Tensor = torch.linalg.cholesky(gram)
    return found
