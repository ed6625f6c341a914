"""The average of a network over its training, which follows where its weights stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.nn.surgery import sparse_layers
from pollard.training import processes


class Averaged(AveragedModel):
    """The running mean of `model`, weights averaged by the place where they stand, kept where `model` keeps them now.

    At each `update_parameters(model)`, for the weight at each place p that the model keeps::

        average[p] = decay * before[p] + (1 - decay) * weight[p]      before[p] = 0 where p was not kept

    What the model drops is forgotten, so memory stays that of what is kept, and a dropped place that comes back starts
    from zero, as the weight itself does. While the topology stays, this is the mean of the dense weights.

    decay: in [0, 1); None for the equal mean of all updates, as in stochastic weight averaging. use_buffers: average
    floating-point buffers too, running statistics above all, instead of copying them. Used and saved as torch's
    `AveragedModel`, which averages by position: wrong as soon as a weight has moved.
    Raises InvalidInput on another decay, and where the model has other layers than the average.
    Source: Polyak & Juditsky, 1992; Izmailov et al., Averaging weights leads to wider optima, UAI 2018.

    >>> model = nn.Sequential(SparseLinear.random(8, 4, density=0.5))
    >>> average = Averaged(model, decay=0.9)
    >>> average.update_parameters(model)
    >>> average(torch.zeros(1, 8)).shape
    torch.Size([1, 4])
    """

    def __init__(self, model: nn.Module, decay: float | None = 0.999, *, use_buffers: bool = False) -> None:
        if decay is not None and not 0.0 <= decay < 1.0:
            raise InvalidInput(f"decay {decay}", "a number in [0, 1), or None", "0.999 forgets within 1000 updates.")
        average = _equal_mean if decay is None else get_ema_multi_avg_fn(decay)
        super().__init__(processes.bare(model), multi_avg_fn=average, use_buffers=use_buffers)

    def update_parameters(self, model: nn.Module) -> None:
        """Take `model` as it is now into the mean."""
        model = processes.bare(model)
        ours, theirs = sparse_layers(self.module), sparse_layers(model)
        alike = [(name, type(layer)) for name, layer in ours.items()] == [
            (name, type(layer)) for name, layer in theirs.items()
        ]
        if not alike:
            raise InvalidInput(
                f"a model with sparse layers {list(theirs)}",
                f"the layers {list(ours)} that the average was made of",
                "Make the average after the model was made sparse.",
            )
        for name, layer in ours.items():
            _follow(layer, theirs[name])
        super().update_parameters(model)
        for name, layer in ours.items():
            # A mask is no number: with use_buffers torch has averaged it.
            _follow(layer, theirs[name])


@torch.no_grad()
def _equal_mean(averages: Any, current: Any, updates: Any) -> None:
    for average, now in zip(averages, current, strict=True):
        if average.is_floating_point():
            average.lerp_(now, 1.0 / (float(updates) + 1.0))
        else:
            average.copy_(now)


@torch.no_grad()
def _follow(average: SparseLinear | MaskedLinear, layer: SparseLinear | MaskedLinear) -> None:
    """Move `average` to where `layer` keeps weights."""
    if isinstance(average, SparseLinear) and isinstance(layer, SparseLinear):
        if not layer.topology.same_as(average.topology):
            held = SparseMatrix(average.values.detach(), average.topology)
            average.keep_(layer.topology, held.moved(layer.topology).values)
    elif isinstance(average, MaskedLinear) and isinstance(layer, MaskedLinear):
        average.mask.copy_(layer.mask)
        average.weight.masked_fill_(~average.mask, 0.0)


__all__ = ["Averaged"]
