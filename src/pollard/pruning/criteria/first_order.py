"""First order: how fast the loss changes as a weight is faded out."""

from __future__ import annotations

from torch import Tensor

from pollard.pruning.criteria.criterion import criterion


@criterion(needs=("weight", "gradient"), across_layers=True, cite="lee2019snip")
def snip(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score `|w * dL/dw|`: how fast the loss L changes as the connection is faded out.

    With a gate c on every weight, L(c * w), the derivative `dL/dc` at c = 1 is `w * dL/dw`. The published score is divided
    by its sum over all weights, which changes no ranking and is left out.
    Source: Lee, Ajanthan, Torr, SNIP: single-shot network pruning based on connection sensitivity, ICLR 2019, eq. 5-6.

    >>> import torch
    >>> snip(weight=torch.tensor([[3.0, -4.0]]), gradient=torch.tensor([[0.5, 0.25]]))
    tensor([[1.5000, 1.0000]])
    """
    return (weight * gradient).abs()
