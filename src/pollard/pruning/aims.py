"""The two aims of pruning, measured: the smallest loss right after it, and the best start for training what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.pruning.batches import between, count, joined, mapped, signals
from pollard.pruning.measurements.gradient import gradient
from pollard.pruning.measurements.hessian import hessian_times
from pollard.pruning.measurements.samples import Pass, separable, squared_gradients
from pollard.pruning.network import Network, weights_of
from pollard.pruning.plan import Plan
from pollard.pruning.scoring import Batches, Pair, Scoring

SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Aims:
    """What pruning does to a network, before any more training; losses and accuracies are of the measuring batch.

    loss_before, loss: of the dense network, and of the pruned one. accuracy_before, accuracy: likewise, in [0, 1]; None
    where targets are no class labels. first_order, second_order: the predicted change of the loss, `g^T d` and
    `g^T d + 1/2 d^T H d`, where d is what pruning changes. A network that was born sparse has no figures of before, and no
    predictions; one that takes tokens has no singular values.
    gradient_norm: of the pruned network's loss, over its kept weights. singular_value: the mean singular value of the
    Jacobian of outputs in inputs, over samples; 1 passes signals as they are. ntk_trace: the trace of the neural tangent
    kernel of the kept weights, the mean over samples of the sum over outputs of `||df/dw||^2`.
    """

    loss_before: float | None
    loss: float
    accuracy_before: float | None
    accuracy: float | None
    first_order: float | None
    second_order: float | None
    gradient_norm: float
    singular_value: float | None
    ntk_trace: float


def measure_aims(
    model: nn.Module,
    plan: Plan,
    batch: Batches,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    chunk_size: int | None = None,
    samples: int = SAMPLES,
) -> Aims:
    """Both aims of `plan` for dense `model`, whose weights it keeps: loss right after pruning, and what training starts from.

    The model is only read, in eval mode. batch: `(inputs, targets)` or an iterable of such pairs; loss_fn: a mean over the
    samples, by default cross-entropy; chunk_size: samples that pass the network at once. samples: of the batch, for the
    Jacobian and the kernel, which cost one backward pass an output unit.
    Raises InvalidInput for a plan of other layers than the model's, or less than one sample.

    >>> from pollard.pruning import prune
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    >>> batch = torch.randn(32, 20), torch.randint(5, (32,))
    >>> plan = prune(model, "snip", density=0.2, batch=batch)
    >>> aims = measure_aims(model, plan, batch)
    >>> abs(aims.second_order - (aims.loss - aims.loss_before)) < 0.1
    True
    """
    if samples < 1:
        raise InvalidInput(f"samples={samples}", "at least 1", f"Leave samples= out for {SAMPLES}.")
    weights_of(model, plan)  # which sees to it that they are those of the plan
    network = Network(model, plan, batch, Scoring(loss_fn, chunk_size=chunk_size))
    network.require_outputs("aims that look at the outputs")
    before = dict(network.weights)
    after = {name: _pruned(plan, name, weight) for name, weight in before.items()}
    step = {name: after[name] - weight for name, weight in before.items()}
    masks = {name: topology.mask() for name, topology in plan.items()}
    with network.undisturbed():
        first = sum(float((slope * step[name]).sum()) for name, slope in gradient(network).items())
        curved = hessian_times(network, before, step)
        second = sum(float((product * step[name]).sum()) for name, product in curved.items()) / 2
        (loss_before, accuracy_before), (loss, accuracy) = _judged(network, before), _judged(network, after)
        network.weights = after
        slopes = gradient(network)
        few = Network(model, plan, _first(network, samples), network.scoring)
        return Aims(
            loss_before=loss_before,
            loss=loss,
            accuracy_before=accuracy_before,
            accuracy=accuracy,
            first_order=first,
            second_order=first + second,
            gradient_norm=sum(float(slope[masks[name]].square().sum()) for name, slope in slopes.items()) ** 0.5,
            singular_value=_singular_value(few, after) if network.takes_signals else None,
            ntk_trace=_ntk_trace(few, after, masks),
        )


def trainability(accuracies: Sequence[float], rates: Sequence[float]) -> float:
    """The mean accuracy over the epochs of the first learning-rate stage: up to where the rate has halved.

    One epoch an entry. Under a step schedule that halves or more, the stage ends at the first step, as published; where
    the rate falls all the time, as along a cosine, it ends before the epoch whose rate is half of the highest or less.
    Raises InvalidInput for no epoch, or lists of different lengths.
    Source: Wang, Qin, Bai, Fu, Why is the state of neural network pruning so confusing?, 2023, eq. 3.

    >>> trainability([0.5, 0.7, 0.9], [0.1, 0.1, 0.01])
    0.6
    """
    if not accuracies or len(accuracies) != len(rates):
        raise InvalidInput(
            f"{len(accuracies)} accuracies and {len(rates)} rates", "one of each an epoch", "Pass equal lists."
        )
    peak = rates.index(max(rates))
    stage = next((epoch for epoch in range(peak, len(rates)) if rates[epoch] <= rates[peak] / 2), len(rates))
    return sum(accuracies[:stage]) / stage


def _pruned(plan: Plan, name: str, weight: Tensor) -> Tensor:
    """The weight `(out, in)` after pruning."""
    if name in plan.updated:
        return SparseMatrix(plan.updated[name], plan[name]).to_dense().to(weight)
    return torch.where(plan.mask(name).to(weight.device), weight, 0.0)


def _judged(network: Network, weights: Mapping[str, Tensor]) -> tuple[float, float | None]:
    """Loss and accuracy over all samples; no accuracy where targets are no class labels."""
    losses = right = 0.0
    seen, labelled = 0, True
    with torch.no_grad():
        for pair in network.pairs():
            samples = count(pair[0])
            cut = [inputs for (inputs, _), _ in network.chunks(pair)]
            outputs = joined([network(weights, inputs) for inputs in cut], [count(inputs) for inputs in cut])
            losses += _loss(network, weights, pair, outputs) * samples
            seen += samples
            labels = pair[1]
            labelled = labelled and _are_classes(outputs, labels)
            right += float((outputs.argmax(1) == labels).sum()) if labelled else 0.0
    return losses / seen, right / seen if labelled else None


def _loss(network: Network, weights: Mapping[str, Tensor], pair: Pair, outputs: object) -> float:
    """The loss of all outputs; the mean over chunks where these are not one thing a sample."""
    if outputs is not None:
        return float(network.loss_of(outputs, pair[1]))
    return sum(float(network.loss(weights, chunk)) * share for chunk, share in network.chunks(pair))


def _are_classes(outputs: object, labels: object) -> bool:
    whole = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return whole and isinstance(outputs, Tensor) and outputs.dim() == 2


def _first(network: Network, samples: int) -> list[Pair]:
    """The first `samples` samples, in pairs."""
    found, left = [], samples
    for inputs, targets in network.pairs():
        found.append((between(inputs, 0, left), between(targets, 0, left)))
        left -= count(inputs)
        if left <= 0:
            break
    return found


def _units(one: Pass) -> Iterator[list[Tensor]]:
    """For each output unit, what picks it out of every sample."""
    flat = one.flat(output.detach() for output in one.outputs)
    for unit in range(flat.shape[1]):
        picked = torch.zeros_like(flat)
        picked[:, unit] = 1
        yield one.shaped(picked)


def _singular_value(network: Network, weights: Mapping[str, Tensor]) -> float:
    values: list[Tensor] = []
    for inputs in separable(network):
        free: list[Tensor] = []

        def freed(part: Tensor, free: list[Tensor] = free) -> Tensor:
            free.append(part.detach().clone().requires_grad_())
            return free[-1]

        outputs = signals(network(weights, mapped(inputs, freed)))
        one = Pass(count(inputs), outputs, {}, lambda parts: parts[0])
        rows = [
            _row(torch.autograd.grad(outputs, free, picked, retain_graph=True, materialize_grads=True))
            for picked in _units(one)
        ]
        values.append(torch.linalg.svdvals(torch.stack(rows, 1)).mean(1))
    return float(torch.cat(values).mean())


def _row(parts: tuple[Tensor, ...]) -> Tensor:
    """Gradients in all inputs side by side, a row for each sample."""
    return torch.cat([part.flatten(1) for part in parts], 1)


def _ntk_trace(network: Network, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    squares = squared_gradients(network, weights, _units)
    return sum(float(square[masks[name]].sum()) for name, square in squares.items())
