"""Connection sensitivity in rounds: of the network that the round before has left."""

from __future__ import annotations

from torch import Tensor

from pollard.pruning.criteria.criterion import criterion

ROUNDS = 60


@criterion(needs=("weight", "gradient"), across_layers=True, rounds=ROUNDS, cite="dejorge2021force", by_row=True)
def iter_snip(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score `|w * dL/dw|` at the sparse network, in rounds; what is dropped stays away.

    Source: de Jorge et al., Progressive skeletonization: trimming more fat from a network at initialization, ICLR 2021.

    >>> import torch
    >>> iter_snip(weight=torch.tensor([[3.0, -4.0]]), gradient=torch.tensor([[0.5, 0.25]]))
    tensor([[1.5000, 1.0000]])
    """
    return (weight * gradient).abs()


@criterion(
    needs=("weight", "gradient"), across_layers=True, rounds=ROUNDS, recover=True, cite="dejorge2021force", by_row=True
)
def force(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score `|w * dL/dw|` with the original weight and the gradient at the sparse network: what is dropped may come back.

    In the next round a weight that is away still has a gradient, and the value it would have again.
    Source: de Jorge et al., Progressive skeletonization: trimming more fat from a network at initialization, ICLR 2021,
    eq. 7.

    >>> import torch
    >>> force(weight=torch.tensor([[3.0, -4.0]]), gradient=torch.tensor([[0.5, 0.25]]))
    tensor([[1.5000, 1.0000]])
    """
    return (weight * gradient).abs()
