"""Signal flow: what passes through the network, whatever the data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from pollard.errors import InvalidInput
from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Network, held

KERNEL_SAMPLES, KERNEL_STEP = 64, 0.01


@measurement
def synaptic_flow(network: Network) -> dict[str, Tensor]:
    """`|w| * dR/d|w|` `(out, in)` by layer, float64, where R is the sum of outputs of the network with every parameter and
    buffer replaced by its magnitude, for an input of ones.

    No data is looked at. Where R leaves the range of float64, each layer's weights are divided by their mean row sum and
    biases left out: every score is then multiplied by the same positive number, and ranks as before.

    >>> network = Network(torch.nn.Linear(2, 1, bias=False), [""], input_shape=(2,))
    >>> network.weights = {"": torch.tensor([[-3.0, 2.0]])}
    >>> with network.undisturbed():
    ...     synaptic_flow(network)
    {'': tensor([[3., 2.]], dtype=torch.float64)}
    """
    _check_signals(network)
    weights = {name: weight.double().abs() for name, weight in network.kept().items()}
    # One sample has no statistics: batch norm uses those it holds, whatever the scoring's mode.
    with network.undisturbed("eval"):
        scores, total = _flow(network, weights, biases=True)
        if torch.isfinite(total) and total > torch.finfo(torch.float64).tiny:
            return scores
        scaled = {name: weight / weight.sum(1).mean().clamp_min(1e-300) for name, weight in weights.items()}
        return _flow(network, scaled, biases=False)[0]


@measurement
def kernel_sensitivity(network: Network) -> dict[str, Tensor]:
    """`|d/dm of the mean over x of ||f(x; m * v) - f(x; m * (v + e))||^2|` `(out, in)` by layer, at the present mask m.

    The squared change of the outputs under a small random change e of all weights is, to first order, e's variance times
    the trace of the neural tangent kernel. Weights v are drawn anew, with each layer's own standard deviation; e has a
    hundredth of it; the inputs x are 64 draws from N(0, 1). No data is looked at.
    Source: Wang, Li, Sun, NTK-SAP: improving neural network pruning by aligning training dynamics, ICLR 2023, eq. 7.
    """
    _check_signals(network)
    inputs = _normal((KERNEL_SAMPLES, *network.input_shape), network, 1.0)
    gates = network.gates()
    plain, moved = {}, {}
    for name, weight in network.weights.items():
        spread = float(weight.std(correction=0)) or 1.0
        drawn = _normal(weight.shape, network, spread)
        plain[name] = gates[name] * drawn
        moved[name] = gates[name] * (drawn + _normal(weight.shape, network, KERNEL_STEP * spread))
    change = (network(plain, inputs) - network(moved, inputs)).flatten(1).square().sum(1).mean()
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


def _flow(network: Network, weights: dict[str, Tensor], *, biases: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The scores, and R."""
    model = network.model
    state = {name: _magnitude(value) for name, value in held(model).items()}
    if not biases:
        state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith("bias")}
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    state |= {f"{name}.weight".lstrip("."): leaf for name, leaf in leaves.items()}
    ones = torch.ones((1, *network.input_shape), dtype=torch.float64, device=network.device)
    total = functional_call(model, state, (ones,), tie_weights=False).sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    gradients = network.reached(dict(zip(leaves, found, strict=True)))
    return {name: (gradients[name] * leaf).detach().abs() for name, leaf in leaves.items()}, total.detach()


def _magnitude(value: Tensor) -> Tensor:
    return value.detach().double().abs() if value.is_floating_point() else value.clone()
