"""Gradients of single samples, and sums of their squares: what Fisher and Gauss-Newton curvature are made of.

Samples must not depend on one another, so batch norm uses the statistics it holds, whatever the scoring's mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pollard.pruning.batches import between, count, joined, mapped, pieces, signals, spliced, tensors
from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Calls, Network
from pollard.pruning.scoring import Pair
from pollard.pruning.slopes import differentiated_twice, is_plain_mean


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """Some samples that have passed the network.

    outputs: its floating-point ones, with their graph, each `(samples, ...)` where it is one thing a sample. calls: of the
    layers. loss: the sum of the samples' own losses, as a function of such outputs.
    """

    samples: int
    outputs: list[Tensor]
    calls: Calls
    loss: Callable[[list[Tensor]], Tensor]

    def flat(self, like_outputs: Iterable[Tensor]) -> Tensor:
        """Tensors of the shapes of the outputs as one `(samples, units)`."""
        return torch.cat([part.reshape(self.samples, -1) for part in like_outputs], 1)

    def shaped(self, flat: Tensor) -> list[Tensor]:
        """`(samples, units)` as tensors of the shapes of the outputs."""
        sizes = [part.numel() // self.samples for part in self.outputs]
        parts = zip(flat.split(sizes, 1), self.outputs, strict=True)
        return [part.reshape(output.shape) for part, output in parts]

    def slope(self, outputs: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
        """The gradient of each sample's own loss in its `outputs`, of their shapes."""
        loss = self.loss(outputs)
        if not loss.requires_grad:
            return [torch.zeros_like(output) for output in outputs]
        return list(torch.autograd.grad(loss, outputs, create_graph=create_graph, materialize_grads=True))

    def free(self) -> list[Tensor]:
        """The outputs, cut off from the network."""
        return [output.detach().requires_grad_() for output in self.outputs]


# What to send back through a pass: tensors of the shapes of its outputs, once or several times.
Cotangents = Callable[[Pass], Iterable[list[Tensor]]]


@measurement(cost=lambda samples, _: samples)
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
        for one in passes(network, network.kept()):
            for name, parts in _outer(network, one, one.slope(one.free())).items():
                found[name].append(torch.einsum("nto,nti->noi", *parts))
    return {name: torch.cat(found.pop(name)) for name in network.names}


@measurement(cost=lambda samples, _: samples)
def fisher_diagonal(network: Network) -> dict[str, Tensor]:
    """The mean square `(out, in)` of the gradient over scoring samples, by layer: the empirical Fisher's diagonal.

    >>> from pollard.pruning.scoring import Scoring
    >>> batch = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.zeros(2)
    >>> network = Network(torch.nn.Linear(2, 1), [""], batch, Scoring(lambda outputs, _: outputs.mean()))
    >>> with network.undisturbed():
    ...     fisher_diagonal(network)
    {'': tensor([[5., 2.]])}
    """
    return squared_gradients(network, network.kept(), lambda one: [one.slope(one.free())])


@measurement(cost=lambda samples, outputs: samples * (1 + 2 * outputs) / 3)
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
    network.require_outputs("the curvature of the loss in the outputs")
    return squared_gradients(network, network.kept(), _curvature_roots)


def squared_gradients(network: Network, weights: Mapping[str, Tensor], cotangents: Cotangents) -> dict[str, Tensor]:
    """The mean over scoring samples, and the sum over cotangents c, of `(d<c_n, f(x_n)>/dw)^2` `(out, in)` by layer."""
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    seen = 0
    with network.undisturbed("eval"):
        for one in passes(network, weights):
            seen += one.samples
            for cotangent in cotangents(one):
                for name, parts in _outer(network, one, cotangent).items():
                    sums[name] += _squares(*parts)
    return {name: total / seen for name, total in sums.items()}


def passes(network: Network, weights: Mapping[str, Tensor]) -> Iterator[Pass]:
    """The scoring samples as they pass the network, in chunks in which each layer's inputs lead with the axis of samples.

    Where a layer is given something else, tokens in one long row, or sequences before samples, every sample comes alone:
    then all that a layer is given is of that sample. A layer that is never called is noted in `network.unreached`.

    A sample's own loss is its part of the mean over its batch, times the samples: where samples weigh differently, the
    outputs of all others are held while a chunk's are changed.
    """
    called: set[str] = set()
    size: int | None = None
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    for pair in network.pairs():
        size = size or _separable_at_once(network, pair)
        whole = None if is_plain_mean(network.scoring.loss_fn, pair[1]) else _all_outputs(network, leaves, pair, size)
        for start, (inputs, targets), outputs, calls in _traced(network, leaves, pair, size):
            called.update(calls)
            seen = (targets, None, 0) if whole is None else (pair[1], whole, start)
            yield Pass(count(inputs), signals(outputs), calls, _own_loss(network, outputs, *seen))
    network.reached({name: weight if name in called else None for name, weight in network.weights.items()})


def _traced(
    network: Network, weights: Mapping[str, Tensor], pair: Pair, size: int
) -> Iterator[tuple[int, Pair, Any, Calls]]:
    """Each piece of `pair`: where it starts, itself, its outputs and calls. One whose samples do not lead comes sample by sample."""
    for number, piece in enumerate(pieces(pair, size)):
        outputs, calls = network.traced(weights, piece[0])
        samples = count(piece[0])
        if samples == 1 or _lead(outputs, calls, samples):
            yield number * size, piece, outputs, calls
            continue
        # A part of a mixture is given some samples only: as many, by chance, as the first few were.
        for offset, single in enumerate(pieces(piece, 1)):
            yield number * size + offset, single, *network.traced(weights, single[0])


def separable(network: Network) -> Iterator[Any]:
    """The inputs of the scoring samples in such chunks."""
    size: int | None = None
    for pair in network.pairs():
        size = size or _separable_at_once(network, pair)
        yield from (inputs for inputs, _ in pieces(pair, size))


def _own_loss(network: Network, outputs: Any, targets: Any, whole: Any, start: int) -> Callable[[list[Tensor]], Tensor]:
    def loss(parts: list[Tensor]) -> Tensor:
        left = iter(parts)
        own = mapped(outputs, lambda part: next(left) if part.is_floating_point() else part)
        return network.loss_of(own if whole is None else spliced(whole, own, start), targets) * count(targets)

    return loss


def _all_outputs(network: Network, weights: Mapping[str, Tensor], pair: Pair, size: int) -> Any:
    """The outputs for all of `pair`; None where they are not one thing a sample: then each piece counts alone."""
    cut = pieces(pair, size)
    with torch.no_grad():
        return joined([network(weights, inputs) for inputs, _ in cut], [count(inputs) for inputs, _ in cut])


def _separable_at_once(network: Network, pair: Pair) -> int:
    size = min(network.scoring.chunk_size or count(pair[0]), count(pair[0]))
    return size if all(_leads(network, between(pair[0], 0, min(few, size))) for few in (1, 2)) else 1


def _leads(network: Network, inputs: Any) -> bool:
    with torch.no_grad():
        outputs, calls = network.traced(network.weights, inputs)
    return _lead(outputs, calls, count(inputs))


def _lead(outputs: Any, calls: Calls, samples: int) -> bool:
    """Whether every layer is given one thing a sample, along its first axis, and the outputs are one thing a sample too."""
    return all(part.dim() and len(part) == samples for part in tensors(outputs)) and all(
        len(given) == samples for of_layer in calls.values() for given, _ in of_layer
    )


def _outer(network: Network, one: Pass, cotangent: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer the gradients `(n, t, out)` of its outputs and its inputs `(n, t, in)`, whose products over t sum to
    the gradient of its weight; t counts positions, and calls. A layer that was not called has one position, of zeros.
    """
    places = [
        (name, given, made)
        for name, of_layer in one.calls.items()
        for given, made in of_layer
        if made.requires_grad and made.numel()
    ]
    ways = [(output, along) for output, along in zip(one.outputs, cotangent, strict=True) if output.requires_grad]
    flows = _flows([output for output, _ in ways], [along for _, along in ways], [made for *_, made in places])
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, given, _), flow in zip(places, flows, strict=True):
        flat = flow.reshape(one.samples, -1, flow.shape[-1]), given.detach().reshape(one.samples, -1, given.shape[-1])
        parts.setdefault(name, []).append(flat)
    for name, weight in network.weights.items():
        nothing = weight.new_zeros(one.samples, 1, weight.shape[0]), weight.new_zeros(one.samples, 1, weight.shape[1])
        parts.setdefault(name, [nothing])
    return {
        name: (torch.cat([f for f, _ in parts[name]], 1), torch.cat([x for _, x in parts[name]], 1))
        for name in network.names
    }


def _flows(outputs: list[Tensor], along: list[Tensor], places: list[Tensor]) -> list[Tensor]:
    if not outputs:
        return [torch.zeros_like(place) for place in places]
    return (
        list(torch.autograd.grad(outputs, places, along, retain_graph=True, materialize_grads=True)) if places else []
    )


def _squares(flow: Tensor, given: Tensor) -> Tensor:
    """The sum over n of the squares of `sum over t of flow^T given`; for one position, a product of squares."""
    if flow.shape[1] == 1:
        return flow[:, 0].square().T @ given[:, 0].square()
    total = flow.new_zeros(flow.shape[-1], given.shape[-1])
    for one_flow, one_given in zip(flow, given, strict=True):
        total += (one_flow.T @ one_given).square_()
    return total


@differentiated_twice()
def _curvature_roots(one: Pass) -> list[list[Tensor]]:
    """Columns whose outer products sum to the Hessian of each sample's loss in its outputs, without its negative part."""
    free = one.free()
    first = one.flat(one.slope(free, create_graph=True))
    if not first.requires_grad:
        return []
    rows = [
        one.flat(torch.autograd.grad(column.sum(), free, retain_graph=True, materialize_grads=True))
        for column in first.unbind(1)
    ]
    values, vectors = torch.linalg.eigh(torch.stack(rows, 1))
    roots = vectors * values.clamp_min(0).sqrt()[:, None, :]
    return [one.shaped(root) for root in roots.unbind(2)]
