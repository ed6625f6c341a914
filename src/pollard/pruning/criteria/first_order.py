"""First order: how fast the loss changes as a weight is faded out."""

from __future__ import annotations

from torch import Tensor

from pollard.pruning.criteria.criterion import criterion


@criterion(needs=("weight", "gradient"), across_layers=True, cite="lee2019snip", by_row=True)
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


@criterion(needs=("movement_away",), allocation="uniform", cite="sanh2020movement")
def movement(movement_away: Tensor) -> Tensor:
    """Score `-sum of w * dL/dw` over steps of training: high where a weight moves away from zero.

    Published scores are summed up over all of fine-tuning, and weights compete within their layer, each of the same density;
    these are summed up over ten steps ahead, on copies.
    Source: Sanh, Wolf, Rush, Movement pruning: adaptive sparsity by fine-tuning, NeurIPS 2020, section 4.
    """
    return movement_away


@criterion(needs=("meta_gradient",), across_layers=True, cite="alizadeh2022prospr")
def prospr(meta_gradient: Tensor) -> Tensor:
    """Score `|dL_3/dm|`: how fast the loss after three steps of training changes as the connection is faded out before.

    Source: Alizadeh et al., Prospect pruning: finding trainable weights at initialization using meta-gradients, ICLR 2022.
    """
    return meta_gradient.abs()
