"""Gradients of single samples, and sums of their squares: what Fisher and Gauss-Newton curvature are made of.

Samples must not depend on one another, so batch norm uses the statistics it holds, whatever the scoring's mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Calls, Network
from pollard.pruning.scoring import Pair

# Outputs (n, ...) and targets to cotangents, each of the shape of the outputs.
Cotangents = Callable[[Tensor, Tensor], Iterable[Tensor]]


@measurement
def sample_gradients(network: Network) -> dict[str, Tensor]:
    """The gradient `(samples, out, in)` of each scoring sample's own loss, by layer: memory of as many dense layers.

    >>> from pollard.pruning.scoring import Scoring
    >>> batch = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.zeros(2)
    >>> network = Network(torch.nn.Linear(2, 1), [""], batch, Scoring(lambda outputs, _: outputs.mean()))
    >>> with network.undisturbed():
    ...     sample_gradients(network)[""].tolist()
    [[[1.0, 0.0]], [[3.0, 2.0]]]
    """
    found: dict[str, list[Tensor]] = {name: [] for name in network.names}
    with network.undisturbed("eval"):
        for inputs, targets in separable(network):
            outputs, calls = network.traced(network.leaves(), inputs)
            own = loss_gradient(network, outputs, targets)
            for name, parts in _outer(network, outputs, calls, own, samples=len(inputs)).items():
                found[name].append(torch.einsum("nto,nti->noi", *parts))
    return {name: torch.cat(found.pop(name)) for name in network.names}


@measurement
def fisher_diagonal(network: Network) -> dict[str, Tensor]:
    """The mean square `(out, in)` of the gradient over scoring samples, by layer: the empirical Fisher's diagonal.

    >>> from pollard.pruning.scoring import Scoring
    >>> batch = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.zeros(2)
    >>> network = Network(torch.nn.Linear(2, 1), [""], batch, Scoring(lambda outputs, _: outputs.mean()))
    >>> with network.undisturbed():
    ...     fisher_diagonal(network)
    {'': tensor([[5., 2.]])}
    """
    return squared_gradients(network, network.kept(), lambda o, y: [loss_gradient(network, o, y)])


@measurement
def gauss_newton_diagonal(network: Network) -> dict[str, Tensor]:
    """The diagonal `(out, in)` of the generalised Gauss-Newton matrix of the mean loss, by layer.

    `mean over n of sum over k of (d<s_nk, f(x_n)>/dw)^2`, where `sum over k of s_nk s_nk^T` is the Hessian of sample n's
    loss in the outputs, without its negative part. In a network of piecewise linear units it is the Hessian's diagonal
    less the curvature of the path from weight to outputs. One backward pass an output unit.

    >>> from pollard.pruning.scoring import Scoring
    >>> half_squares = Scoring(lambda outputs, _: (outputs**2).mean() / 2)
    >>> batch = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.zeros(2)
    >>> network = Network(torch.nn.Linear(2, 1), [""], batch, half_squares)
    >>> with network.undisturbed():
    ...     gauss_newton_diagonal(network)
    {'': tensor([[5., 2.]])}
    """
    return squared_gradients(network, network.kept(), lambda o, y: _curvature_roots(network, o, y))


def squared_gradients(network: Network, weights: Mapping[str, Tensor], cotangents: Cotangents) -> dict[str, Tensor]:
    """The mean over scoring samples, and the sum over cotangents c, of `(d<c_n, f(x_n)>/dw)^2` `(out, in)` by layer."""
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    seen = 0
    with network.undisturbed("eval"):
        for inputs, targets in separable(network):
            leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
            outputs, calls = network.traced(leaves, inputs)
            seen += len(inputs)
            for cotangent in cotangents(outputs, targets):
                for name, parts in _outer(network, outputs, calls, cotangent, samples=len(inputs)).items():
                    sums[name] += _squares(*parts)
    return {name: total / seen for name, total in sums.items()}


def loss_gradient(network: Network, outputs: Tensor, targets: Tensor, *, create_graph: bool = False) -> Tensor:
    """The gradient of each sample's own loss in its outputs, of their shape."""
    loss = network.loss_of(outputs, targets) * len(targets)
    return torch.autograd.grad(loss, outputs, retain_graph=True, create_graph=create_graph)[0]


def separable(network: Network) -> Iterator[Pair]:
    """The scoring samples in chunks in which each layer's inputs lead with the axis of samples.

    Where a layer is given something else, tokens in one long row, or sequences before samples, every sample comes alone:
    then all that a layer is given is of that sample.
    """
    size: int | None = None
    for pair in network.pairs():
        for (inputs, targets), _ in network.chunks(pair):
            if size is None:
                size = len(inputs) if all(_leads(network, inputs[:few]) for few in (1, 2)) else 1
            yield from zip(inputs.split(size), targets.split(size), strict=True)


def _leads(network: Network, inputs: Tensor) -> bool:
    """Whether every layer is given one thing a sample, along its first axis, and the outputs are one thing a sample too."""
    with torch.no_grad():
        outputs, calls = network.traced(network.weights, inputs)
    return len(outputs) == len(inputs) and all(
        len(given) == len(inputs) for of_layer in calls.values() for given, _ in of_layer
    )


def _outer(
    network: Network, outputs: Tensor, calls: Calls, cotangent: Tensor, *, samples: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer the gradients `(n, t, out)` of its outputs and its inputs `(n, t, in)`, whose products over t sum to
    the gradient of its weight; t counts positions, and calls.
    """
    places = [(name, given, made) for name, of_layer in calls.items() for given, made in of_layer]
    flows = torch.autograd.grad(
        outputs, [made for *_, made in places], cotangent, retain_graph=True, materialize_grads=True
    )
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, given, _), flow in zip(places, flows, strict=True):
        flat = flow.reshape(samples, -1, flow.shape[-1]), given.detach().reshape(samples, -1, given.shape[-1])
        parts.setdefault(name, []).append(flat)
    return {
        name: (torch.cat([f for f, _ in of_layer], 1), torch.cat([x for _, x in of_layer], 1))
        for name, of_layer in network.reached({name: parts.get(name) for name in network.names}).items()
    }


def _squares(flow: Tensor, given: Tensor) -> Tensor:
    """The sum over n of the squares of `sum over t of flow^T given`; for one position, a product of squares."""
    if flow.shape[1] == 1:
        return flow[:, 0].square().T @ given[:, 0].square()
    total = flow.new_zeros(flow.shape[-1], given.shape[-1])
    for one_flow, one_given in zip(flow, given, strict=True):
        total += (one_flow.T @ one_given).square_()
    return total


def _curvature_roots(network: Network, outputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Columns whose outer products sum to the Hessian of each sample's loss in its outputs, without its negative part."""
    free, samples = outputs.detach().requires_grad_(), len(targets)
    first = loss_gradient(network, free, targets, create_graph=True).reshape(samples, -1)
    if not first.requires_grad:
        return []
    rows = [
        torch.autograd.grad(column.sum(), free, retain_graph=True, materialize_grads=True)[0].reshape(samples, -1)
        for column in first.unbind(1)
    ]
    curvature = torch.stack(rows, 1)
    # There is no decomposition of half precision.
    values, vectors = torch.linalg.eigh(curvature.to(torch.promote_types(curvature.dtype, torch.float32)))
    roots = (vectors * values.clamp_min(0).sqrt()[:, None, :]).to(outputs.dtype)
    return [root.reshape(outputs.shape) for root in roots.unbind(2)]
