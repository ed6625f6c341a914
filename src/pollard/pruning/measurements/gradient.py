"""The gradient of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Network


@measurement
def gradient(network: Network) -> dict[str, Tensor]:
    """The gradient `(out, in)` of the mean loss over all scoring samples, for the weight of each layer.

    With `accumulate="absolute"`, the mean over the batches of the magnitudes of each batch's gradient.

    >>> from pollard.pruning.scoring import Scoring
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> batch = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.zeros(2)
    >>> network = Network(model, [""], batch, Scoring(lambda outputs, _: outputs.mean(), chunk_size=1))
    >>> with network.undisturbed():
    ...     gradient(network)
    {'': tensor([[2., 1.]])}
    """
    return mean_gradient(network, absolute=network.scoring.accumulate == "absolute")


def mean_gradient(network: Network, *, absolute: bool = False) -> dict[str, Tensor]:
    """The gradient of the mean loss; `absolute`: the mean of the magnitudes of each batch's instead."""
    mean: dict[str, Tensor] = {}
    seen = 0
    for pair in network.pairs():
        of_batch: dict[str, Tensor] = {}
        covered = 0.0
        for chunk, share in network.chunks(pair):
            leaves = network.leaves()
            found = torch.autograd.grad(network.loss(leaves, chunk), list(leaves.values()), allow_unused=True)
            covered += share
            move_towards(of_batch, network.reached(dict(zip(leaves, found, strict=True))), share / covered)
        if absolute:
            of_batch = {name: part.abs_() for name, part in of_batch.items()}
        seen += len(pair[0])
        move_towards(mean, of_batch, len(pair[0]) / seen)
    return mean


def move_towards(mean: dict[str, Tensor], new: Mapping[str, Tensor], share: float) -> None:
    """Moves a running mean by `share` towards `new`, in place; the first is taken as it is, bit for bit."""
    for name, value in new.items():
        mean[name] = mean[name].lerp_(value, share) if name in mean else value
