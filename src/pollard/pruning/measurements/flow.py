"""Signal flow: what passes through the network, whatever the data."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.pruning.batches import signals
from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Network, held
from pollard.streamed.products import Scaled
from pollard.streamed.tensor import StreamedTensor

KERNEL_SAMPLES, KERNEL_STEP = 64, 0.01
# Powers of two, which change no digit, for R up to 2**2000 and down to 2**-2000.
SCALES = tuple(2.0**power for step in (250, 500, 750, 1000) for power in (-step, step))
# Parameters and buffers that are added to signals, by their last name.
ADDED = ("bias", "running_mean")
# A score below is about to lose digits, or has.
LEAST, MOST = 1e-250, 1e300


@measurement(cost=lambda *_: 1)
def synaptic_flow(network: Network) -> dict[str, Tensor]:
    """`|w| * dR/d|w|` `(out, in)` by layer, float64, where R is the sum of outputs of the network with every parameter and
    buffer replaced by its magnitude, for an input of ones.

    No data is looked at. R grows or shrinks with every layer, and where its logarithm leaves float64, it is taken of an
    input, biases and running means times s instead, and of outputs times t: numbers on the way stay in range, and every
    score is multiplied by the same s t, exactly, in any network whose outputs grow as what comes in, skip connections and
    all. That they do is checked. Beyond that, each layer of a chain is divided by its mean row sum, biases left out, which is
    as exact where R grows as every single layer does. Raises InvalidInput where neither serves.

    >>> network = Network(torch.nn.Linear(2, 1, bias=False), [""], input_shape=(2,))
    >>> network.weights = {"": torch.tensor([[-3.0, 2.0]])}
    >>> with network.undisturbed():
    ...     synaptic_flow(network)
    {'': tensor([[3., 2.]], dtype=torch.float64)}
    """
    _check_signals(network)
    weights = {name: weight.abs().double() for name, weight in network.kept().items()}
    # One sample has no statistics: batch norm uses those it holds, whatever the scoring's mode.
    with network.undisturbed("eval"):
        plain, total = _flow(network, weights, 1.0)
        if _in_range(plain, total):
            return plain
        even = _grows_evenly(network, weights)
        for scale in SCALES if even else ():
            scores, total = _flow(network, weights, scale)
            if _in_range(scores, total):
                return scores
        in_a_chain = _layer_by_layer(network, weights)
        if in_a_chain is not None:
            return in_a_chain
        if not any(bool(score.any()) for score in plain.values()):  # at no scale anything comes through: nothing does
            return plain
        raise InvalidInput(
            "a flow through the network that leaves float64 at every scale",
            "a network through which the sum of all paths is a number",
            "Use a criterion that looks at data, such as snip, or add normalisation: it is very deep, or its weights are large.",
        )


@measurement(cost=lambda *_: 2 * KERNEL_SAMPLES)
def kernel_sensitivity(network: Network) -> dict[str, Tensor]:
    """`|d/dm of the mean over x of ||f(x; m * v) - f(x; m * (v + e))||^2|` `(out, in)` by layer, at the present mask m.

    The squared change of the outputs under a small random change e of all weights is, to first order, e's variance times
    the trace of the neural tangent kernel. Weights v are drawn anew, with each layer's own standard deviation; e has a
    hundredth of it; the inputs x are 64 draws from N(0, 1). No data is looked at.
    Source: Wang, Li, Sun, NTK-SAP: improving neural network pruning by aligning training dynamics, ICLR 2023, eq. 7.
    """
    _check_signals(network)
    inputs = network.like_inputs(KERNEL_SAMPLES, lambda shape: _normal(shape, network, 1.0))
    gates = network.gates()
    plain, moved = {}, {}
    for name, weight in network.weights.items():
        spread = float(weight.std(correction=0)) or 1.0
        drawn = _normal(weight.shape, network, spread)
        plain[name] = gates[name] * drawn
        moved[name] = gates[name] * (drawn + _normal(weight.shape, network, KERNEL_STEP * spread))
    pairs = zip(signals(network(plain, inputs)), signals(network(moved, inputs)), strict=True)
    # A mean over samples of sums over all else.
    change = torch.stack([(one - other).square().sum() / len(one) for one, other in pairs]).sum()
    found = torch.autograd.grad(change, list(gates.values()), allow_unused=True)
    return {name: part.abs() for name, part in network.reached(dict(zip(gates, found, strict=True))).items()}


def _check_signals(network: Network) -> None:
    """Raises InvalidInput where the model is known to take no signals, but indices: an input of ones would be a token."""
    if not network.takes_signals:
        raise InvalidInput(
            "a model whose inputs are whole numbers, tokens perhaps",
            "a model of floating-point inputs, through which a signal of no data can flow",
            "Use a criterion that looks at data, such as snip.",
        )


def _normal(shape: tuple[int, ...], network: Network, deviation: float) -> Tensor:
    like = next(iter(network.weights.values()))
    draw = network.generator
    return (torch.randn(shape, generator=draw, device=draw.device, dtype=torch.float32) * deviation).to(like)


def _flow(
    network: Network, weights: dict[str, Tensor], scale: float, *, added: float | None = None, scored: bool = True
) -> tuple[dict[str, Tensor], Tensor]:
    """The scores times `scale**2`, if they are asked for, and R times `scale`. added: the scale of biases, if it is another."""
    state = {name: _magnitude(value) for name, value in held(network.model).items()}
    # What is added to signals, rather than multiplied with them, keeps its proportion to them.
    state |= {
        name: value * (scale if added is None else added)
        for name, value in state.items()
        if any(each in name.rpartition(".")[2] for each in ADDED)
    }
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    state |= {f"{name}.weight".lstrip("."): leaf for name, leaf in leaves.items()}
    device = network.device
    inputs = network.like_inputs(1, lambda shape: torch.full(shape, scale, dtype=torch.float64, device=device))
    outputs = signals(network.with_state(state, inputs))
    total = torch.stack([output.sum() for output in outputs]).sum()
    if not scored:
        return {}, total.detach()
    found = torch.autograd.grad(total, list(leaves.values()), torch.full_like(total, scale), allow_unused=True)
    gradients = network.reached(dict(zip(leaves, found, strict=True)))
    return {name: leaf.detach() * gradients[name].abs() for name, leaf in leaves.items()}, total.detach()


def _layer_by_layer(network: Network, weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The scores with every layer brought to a mean row sum of 1; None where R does not grow as each single layer does."""
    scaled = _with_row_sums(weights, 1.0)
    scores, total = _flow(network, scaled, 1.0, added=0.0)
    if not _in_range(scores, total):
        return None
    for name, weight in scaled.items():
        doubled = _flow(network, scaled | {name: 2 * weight}, 1.0, added=0.0, scored=False)[1]
        if not torch.isclose(doubled, 2 * total, rtol=1e-9, atol=0.0):
            return None
    return scores


def _in_range(scores: dict[str, Tensor], total: Tensor) -> bool:
    """Whether nothing has overflowed, and what is largest is far from vanishing."""
    best = torch.stack([_largest(score) for score in scores.values() if score.numel()])
    return bool(torch.isfinite(best).all() and torch.isfinite(total)) and LEAST < float(best.amax()) < MOST


def _largest(score: Tensor) -> Tensor:
    """The highest of them; of a product with an outer product, that of its likeliest row, where it and the factors tell as much."""
    if (
        isinstance(score, StreamedTensor)
        and isinstance(score.source, Scaled)
        and score.source.outer.vectors is not None
    ):
        a, b = score.source.outer.vectors
        row = int(a.argmax())
        found = score.block(row, row + 1).amax()
        if float(found) > LEAST and torch.finfo(torch.float32).max * float(a.amax()) * float(b.amax()) < MOST:
            return found
    return score.amax()


def _grows_evenly(network: Network, weights: dict[str, Tensor]) -> bool:
    """Whether twice the input, and twice what is added, gives twice the output, and half of them half.

    Asked of tame weights, since the network's own lead out of range: of rows that sum to 1, as a chain wants it, or to 1 by the
    number of layers, as skip connections do.
    """
    for tamed in (1, len(weights)):
        scaled = _with_row_sums(weights, 1 / tamed)
        less, same, more = (_flow(network, scaled, scale, scored=False)[1] for scale in (0.5, 1.0, 2.0))
        if torch.isfinite(more) and float(less) > LEAST:
            return bool(
                torch.isclose(2 * less, same, rtol=1e-9, atol=0.0)
                and torch.isclose(2 * same, more, rtol=1e-9, atol=0.0)
            )
    return False


def _with_row_sums(weights: dict[str, Tensor], wanted: float) -> dict[str, Tensor]:
    return {name: weight * (wanted / weight.sum(1).mean().clamp_min(1e-300)) for name, weight in weights.items()}


def _magnitude(value: Tensor) -> Tensor:
    return value.detach().double().abs() if value.is_floating_point() else value.clone()
