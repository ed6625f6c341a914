"""The gradient of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pollard.pruning.batches import count
from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Network
from pollard.pruning.slopes import slopes


@measurement(cost=lambda samples, _: samples)
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
    reached: set[str] = set()
    for pair in network.pairs():
        found = slopes(network, network.kept(), pair)
        reached |= {name for name, part in found.items() if part is not None}
        of_batch = {
            name: torch.zeros_like(network.weights[name]) if part is None else part for name, part in found.items()
        }
        if absolute:
            of_batch = {name: part.abs() for name, part in of_batch.items()}
        seen += count(pair[0])
        move_towards(mean, of_batch, count(pair[0]) / seen)
    return network.reached({name: part if name in reached else None for name, part in mean.items()})


def move_towards(mean: dict[str, Tensor], new: Mapping[str, Tensor], share: float) -> None:
    """Moves a running mean by `share` towards `new`; the first is taken as it is, bit for bit."""
    for name, value in new.items():
        mean[name] = mean[name].lerp(value, share) if name in mean else value
