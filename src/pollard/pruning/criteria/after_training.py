"""Criteria for a network that has been trained."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.formats.pattern import Pattern
from pollard.pruning.criteria.criterion import criterion
from pollard.pruning.masks import best_grains, shares, top_positions


@criterion(needs=("weight", "gradient"), across_layers=True, cite="molchanov2019importance", by_row=True)
def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score `(w * dL/dw)^2`: the squared change in the loss, to first order, when the weight goes.

    For single weights it ranks as `snip` does, which is the same expansion taken before training. Over a grain it adds
    squares where `snip` adds magnitudes.
    Source: Molchanov et al., Importance estimation for neural network pruning, CVPR 2019, eq. 8.

    >>> taylor(weight=torch.tensor([[3.0, -4.0]]), gradient=torch.tensor([[0.5, 0.25]]))
    tensor([[2.2500, 1.0000]])
    """
    return (weight * gradient) ** 2


@criterion(needs=("weight",), across_layers=True, cite="lee2021lamp")
def lamp(weight: Tensor) -> Tensor:
    """Score `w_u^2 / sum of w_v^2 over all v of the layer that are no smaller`: how much of what survives it is.

    The largest weight of every layer scores 1, so that no layer is emptied before each is down to one weight. Of equal
    weights the lower position counts as the larger.
    Source: Lee, Park, Mo, Ahn, Shin, Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021, eq. 4.

    >>> lamp(weight=torch.tensor([[3.0, -4.0]]))
    tensor([[0.3600, 1.0000]], dtype=torch.float64)
    """
    squares = weight.double().flatten().square()
    # Stable and descending, so that of equal weights the first is the largest, as the one top-k has it.
    order = squares.sort(descending=True, stable=True)
    # On the CPU: where the order of such sums may vary, as on a GPU, torch refuses them when asked for determinism.
    surviving = order.values.cpu().cumsum(0).to(squares.device)
    scores = squares.new_empty(squares.shape)
    scores[order.indices] = order.values / surviving.clamp_min(1e-300)
    return scores.view(weight.shape)


@criterion(needs=("weight", "input_norms"), allocation="uniform", cite="sun2024wanda")
def wanda(weight: Tensor, input_norms: Tensor) -> Tensor:
    """Score `|W_ij| * ||X_j||_2`: the weight times how strong its input is over the scoring samples.

    Published weights compete within their output row only, each of the same density: `wanda.solve` keeps the same fraction of
    every row of grains, to within one. The authors drop `floor((1 - density) in)` of every row, up to one less.
    Source: Sun, Liu, Bair, Kolter, A simple and effective pruning approach for large language models, ICLR 2024, eq. 1.

    >>> wanda(weight=torch.tensor([[3.0, -4.0]]), input_norms=torch.tensor([2.0, 1.0]))
    tensor([[6., 4.]])
    """
    return weight.abs() * input_norms


@wanda.solved_by
def _row_by_row(
    weight: Tensor, count: int, pattern: Pattern, allowed: Tensor, input_norms: Tensor
) -> tuple[Tensor, Tensor]:
    scores = pattern.grain_sum(wanda(weight, input_norms)).masked_fill(~allowed, -torch.inf)
    if pattern.m:
        return best_grains(scores.flatten(), count, pattern), weight
    rows = [
        top_positions(row, share) + group * row.numel()
        for group, (row, share) in enumerate(zip(scores, shares(count, allowed.sum(1)), strict=True))
    ]
    return torch.cat(rows), weight


@criterion(needs=("weight", "input_norms"), allocation="uniform", cite="zhang2024plug")
def ria(weight: Tensor, input_norms: Tensor) -> Tensor:
    """Score `(|W_ij| / sum of |W_*j| + |W_ij| / sum of |W_i*|) * ||X_j||_2^0.5`: relative importance and activations.

    A weight counts by its share of what enters its output and of what leaves its input: units of small weights keep some.
    Weights compete within their layer, each of the same density; a row or column of zeros scores zero.
    Source: Zhang, Bai, Lin, Zhao, Hou, Cannistraci, Plug-and-play: an efficient post-training pruning method for large language
    models, ICLR 2024, and the authors' code.

    >>> ria(weight=torch.tensor([[3.0, -1.0], [0.0, 1.0]]), input_norms=torch.tensor([4.0, 1.0]))
    tensor([[3.5000, 0.7500],
            [0.0000, 1.5000]])
    """
    size = weight.abs()
    least = torch.finfo(size.dtype).tiny
    relative = size / size.sum(0).clamp_min(least) + size / size.sum(1, keepdim=True).clamp_min(least)
    return relative * input_norms.sqrt()
