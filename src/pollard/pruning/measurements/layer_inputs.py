"""What each layer is given: the second moments of its inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Network


@measurement(cost=lambda samples, _: samples / 3)
def input_gram(network: Network) -> dict[str, Tensor]:
    """`X X^T / n` `(in, in)` by layer, float64: X `(in, n)` is what the layer is given for all scoring samples.

    A mean, so that samples seen twice change nothing. It takes `8 in^2` bytes a layer.

    >>> network = Network(torch.nn.Linear(2, 1), [""], (torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2)))
    >>> with network.undisturbed():
    ...     input_gram(network)[""].tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """
    return {name: gram / max(1, rows) for name, (gram, rows) in _summed(network, lambda x: x.T @ x).items()}


@measurement(cost=lambda samples, _: samples / 3)
def input_norms(network: Network) -> dict[str, Tensor]:
    """`||X_j||_2` `(in,)` by layer: the norm of each input feature over all scoring samples.

    >>> network = Network(torch.nn.Linear(2, 1), [""], (torch.tensor([[3.0, 2.0], [4.0, 0.0]]), torch.zeros(2)))
    >>> with network.undisturbed():
    ...     input_norms(network)[""].tolist()
    [5.0, 2.0]
    """
    squares = _summed(network, lambda x: x.square().sum(0))
    return {name: square.sqrt().to(network.weights[name].dtype) for name, (square, _) in squares.items()}


def _summed(network: Network, moment: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, int]]:
    """The sum over all samples of a moment of each layer's inputs `(rows, in)`, and how many; zero where it is never called."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, rows: Tensor) -> None:
        # At once: what follows may write into a layer's input, and nothing is held for it.
        found = moment(rows.double())
        sums[name] = sums[name].add_(found) if name in sums else found
        counts[name] = counts.get(name, 0) + len(rows)

    kept = network.kept()
    for pair in network.pairs():
        for (inputs, _), _ in network.chunks(pair):
            network.look(kept, inputs, add)
    never = {name: weight.new_zeros((0, weight.shape[1]), dtype=torch.float64) for name, weight in kept.items()}
    network.unreached.update(name for name in never if name not in sums)
    return {name: (sums[name], counts[name]) if name in sums else (moment(rows), 0) for name, rows in never.items()}
