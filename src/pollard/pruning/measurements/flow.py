"""Signal and gradient flow: what passes through the network, and what becomes of its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from pollard.pruning.measurements.gradient import gradient, move_towards
from pollard.pruning.measurements.measurement import measurement
from pollard.pruning.network import Network


@measurement
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
    held = gradient(network)
    product: dict[str, Tensor] = {}
    seen = 0
    for pair in network.pairs():
        of_batch: dict[str, Tensor] = {}
        covered = 0.0
        for chunk, share in network.chunks(pair):
            leaves = network.leaves()
            loss = network.loss(leaves, chunk)
            found = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
            flowing = network.reached(dict(zip(leaves, found, strict=True)))
            along = torch.stack([(held[name] * flowing[name]).sum() for name in leaves]).sum()
            curved = torch.autograd.grad(along, list(leaves.values()), materialize_grads=True)
            covered += share
            move_towards(of_batch, dict(zip(leaves, curved, strict=True)), share / covered)
        seen += len(pair[0])
        move_towards(product, of_batch, len(pair[0]) / seen)
    return product


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
    weights = {name: weight.double().abs() for name, weight in network.kept().items()}
    # One sample has no statistics: batch norm uses those it holds, whatever the scoring's mode.
    with network.undisturbed("eval"):
        scores, total = _flow(network, weights, biases=True)
        if torch.isfinite(total) and total > torch.finfo(torch.float64).tiny:
            return scores
        scaled = {name: weight / weight.sum(1).mean().clamp_min(1e-300) for name, weight in weights.items()}
        return _flow(network, scaled, biases=False)[0]


def _flow(network: Network, weights: dict[str, Tensor], *, biases: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The scores, and R."""
    model = network.model
    state = {name: _magnitude(value) for name, value in model.state_dict(keep_vars=False).items()}
    if not biases:
        state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith("bias")}
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    state |= {f"{name}.weight".lstrip("."): leaf for name, leaf in leaves.items()}
    ones = torch.ones((1, *network.input_shape), dtype=torch.float64, device=network.device)
    total = functional_call(model, state, (ones,)).sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    gradients = network.reached(dict(zip(leaves, found, strict=True)))
    return {name: (gradients[name] * leaf).detach() for name, leaf in leaves.items()}, total.detach()


def _magnitude(value: Tensor) -> Tensor:
    return value.detach().double().abs() if value.is_floating_point() else value.clone()
