"""The criteria that look at nothing but the weight, or at nothing at all."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.pruning.criteria.criterion import criterion


@criterion(needs=("weight",), cite="han2015learning", by_row=True)
def magnitude(weight: Tensor) -> Tensor:
    """Score `|w|`.

    Source: Han et al., Learning both weights and connections for efficient neural networks, NeurIPS 2015.

    >>> magnitude(weight=torch.tensor([[3.0, -4.0]]))
    tensor([[3., 4.]])
    """
    return weight.abs()


@criterion(needs=("weight", "generator"), by_row=True)
def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Score `U(0, 1)`, independent of the weight; float32, so that a coarse weight dtype does not make ties.

    >>> random(weight=torch.zeros(1, 2), generator=torch.Generator().manual_seed(0))
    tensor([[0.4963, 0.7682]])
    """
    return torch.rand(weight.shape, generator=generator, device=generator.device, dtype=torch.float32)
