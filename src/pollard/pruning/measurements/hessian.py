"""The Hessian of the loss, through products with vectors: it is never formed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pollard.pruning.batches import count
from pollard.pruning.measurements.gradient import mean_gradient, move_towards
from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Network
from pollard.pruning.slopes import curved

PROBES = 32


@measurement(cost=lambda samples, _: 4 * samples)
def hessian_gradient(network: Network) -> dict[str, Tensor]:
    """`H g` `(out, in)`: the Hessian of the mean loss times its gradient, over all scoring samples, by layer.

    `H g = d(g0^T g)/dw` with g0 held constant, which is half the gradient of `g^T g`. g is of all samples before the first
    product is taken, so that cutting them into chunks changes nothing.

    >>> from pollard.pruning.scoring import Scoring
    >>> half_squares = Scoring(lambda outputs, _: (outputs**2).mean() / 2)
    >>> network = Network(torch.nn.Linear(1, 1, bias=False), [""], (torch.tensor([[2.0]]), torch.zeros(1)), half_squares)
    >>> network.weights = {"": torch.tensor([[3.0]])}  # loss (2 w)^2 / 2, so H = 4 and g = 12
    >>> with network.undisturbed():
    ...     hessian_gradient(network)
    {'': tensor([[48.]])}
    """
    return hessian_times(network, network.kept(), mean_gradient(network))


@measurement(cost=lambda samples, _: 3 * PROBES * samples)
def hessian_diagonal(network: Network) -> dict[str, Tensor]:
    """An unbiased estimate `(out, in)` of the diagonal of the loss's Hessian, by layer: the mean of `z * H z`.

    32 probes z of random signs; the error of an entry falls as their root and grows with its row's other entries. A
    Hessian that is diagonal is found exactly.
    Source: Bekas, Kokiopoulou, Saad, An estimator for the diagonal of a matrix, 2007; Hutchinson 1990.
    """
    mean: dict[str, Tensor] = {}
    for probe in range(PROBES):
        signs = {name: _signs(weight, network.generator) for name, weight in network.weights.items()}
        product = hessian_times(network, network.kept(), signs)
        move_towards(mean, {name: product[name] * sign for name, sign in signs.items()}, 1 / (probe + 1))
    return mean


def hessian_times(
    network: Network, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The Hessian of the mean loss over all scoring samples at `weights`, times `direction`, by layer."""
    product: dict[str, Tensor] = {}
    seen = 0
    reached: set[str] = set()
    for pair in network.pairs():
        found = curved(network, weights, direction, pair)
        reached |= {name for name, part in found.items() if part is not None}
        of_batch = {
            name: torch.zeros_like(network.weights[name]) if part is None else part for name, part in found.items()
        }
        seen += count(pair[0])
        move_towards(product, of_batch, count(pair[0]) / seen)
    return network.reached({name: part if name in reached else None for name, part in product.items()})


def _signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, weight.shape, generator=generator, device=generator.device, dtype=torch.int64)
    return (2 * drawn - 1).to(weight)
