"""Gradients of the mean loss of one batch, exact however the batch is cut into chunks, whatever mean the loss is.

The mean over a batch is the mean of its chunks' means only where every sample weighs the same. Elsewhere the loss is taken of
all outputs o, once, and its gradient g in them goes back through the network chunk by chunk: `dL/dw = sum_c J_c^T g_c`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pollard.errors import InvalidInput
from pollard.pruning.batches import count, joined, mapped, signals, tensors
from pollard.pruning.network import Network
from pollard.pruning.scoring import Pair
from pollard.streamed.tensor import inner

Found = dict[str, Tensor | None]
_PLAIN = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss)
_PLAIN_FUNCTIONS = (functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss)


def slopes(network: Network, weights: Mapping[str, Tensor], pair: Pair) -> Found:
    """The gradient `(out, in)` of the mean loss over `pair` at `weights`, by layer; None where it does not depend on one."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    chunks = list(network.chunks(pair))
    total: Found = dict.fromkeys(leaves)
    if len(chunks) == 1 or is_plain_mean(network.scoring.loss_fn, pair[1]):
        for chunk, share in chunks:
            _add(total, _grad(share_of(network.loss(leaves, chunk), share), leaves))
        return total
    passes = _Passes(network, leaves, [chunk for chunk, _ in chunks])
    pulls = passes.of_loss(pair[1])
    for number in range(len(chunks)):
        outputs = passes.again(number)
        _add(total, _grad(_along(outputs, passes.cut(pulls, number)), leaves))
    return total


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Raises InvalidInput in place of what torch says of an operation whose gradient has no gradient."""
    try:
        yield
    except RuntimeError as error:
        # So torch says of its own operations: derivative for aten::_ctc_loss_backward is not implemented.
        if "is not implemented" not in str(error):
            raise
        raise InvalidInput(
            f"a loss or model that can be differentiated only once: {error}",
            "one whose gradient has a gradient, as this criterion is of second order",
            "Score with another loss_fn=, such as cross-entropy, or take a criterion of first order, such as snip; in a model, "
            "replace the operation that is named.",
        ) from error


@differentiated_twice()
def curved(network: Network, weights: Mapping[str, Tensor], direction: Mapping[str, Tensor], pair: Pair) -> Found:
    """The Hessian of the mean loss over `pair` at `weights`, times `direction`, by layer.

    In chunks of a loss that is no plain mean, `H v = sum_c J_c^T (B J v)_c + d(g_c^T J_c v)/dw`, with B the Hessian of the loss
    in all outputs: J v of every chunk first, by differentiating `J^T z` in z.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    chunks = list(network.chunks(pair))
    total: Found = dict.fromkeys(leaves)
    if len(chunks) == 1 or is_plain_mean(network.scoring.loss_fn, pair[1]):
        for chunk, share in chunks:
            _add(total, _twice(share_of(network.loss(leaves, chunk), share), leaves, direction, None))
        return total
    passes = _Passes(network, leaves, [chunk for chunk, _ in chunks])
    pushed = [_pushed(passes.again(number), leaves, direction) for number in range(len(chunks))]
    whole = [torch.cat(parts) for parts in zip(*pushed, strict=True)]
    pulls, bends = passes.of_loss(pair[1], whole)
    for number in range(len(chunks)):
        outputs = passes.again(number)
        extra = _along(outputs, passes.cut(bends, number))
        _add(total, _twice(_along(outputs, passes.cut(pulls, number)), leaves, direction, extra))
    return total


def is_plain_mean(loss_fn: Any, targets: Any) -> bool:
    """Whether the loss is known to be the mean over samples with equal weights, so that means of chunks add up to it.

    >>> labels = torch.tensor([0, 1])
    >>> is_plain_mean(None, labels), is_plain_mean(None, torch.tensor([0, -100])), is_plain_mean(lambda o, t: o, labels)
    (True, False, False)
    """
    if loss_fn is None and isinstance(targets, Mapping):
        # The model's own loss: a mean but for targets that it is told to pass over.
        return not any(bool((part == -100).any()) for part in tensors(targets) if not part.is_floating_point())
    if loss_fn is None or loss_fn is functional.cross_entropy:
        return not bool((targets == -100).any()) if isinstance(targets, Tensor) else False
    if type(loss_fn) is nn.CrossEntropyLoss:
        plain = loss_fn.weight is None and loss_fn.reduction == "mean" and isinstance(targets, Tensor)
        return plain and not bool((targets == loss_fn.ignore_index).any())
    if loss_fn in _PLAIN_FUNCTIONS:
        return True
    return type(loss_fn) in _PLAIN and loss_fn.reduction == "mean" and getattr(loss_fn, "weight", None) is None


def share_of(loss: Tensor, share: float) -> Tensor:
    """`loss`, times `share`; itself for all of it, bit for bit."""
    return loss if share == 1 else loss * share


class _Passes:
    """The passes of a batch's chunks through the network, which can be gone through again with the same dropout."""

    def __init__(self, network: Network, leaves: Mapping[str, Tensor], chunks: list[Pair]) -> None:
        self.network, self.leaves, self.chunks = network, leaves, chunks
        self.sizes = [count(inputs) for inputs, _ in chunks]
        self.states: list[tuple[Tensor, Tensor | None]] = []
        made = []
        with torch.no_grad():
            for inputs, _ in chunks:
                self.states.append(_random_state(network.device))
                made.append(mapped(network(leaves, inputs), lambda part: part.clone()))
        self.whole = joined(made, self.sizes)
        if self.whole is None or network.takes_own_loss:
            raise InvalidInput(
                "chunk_size= with outputs that are not one thing a sample, for a loss that is no plain mean",
                "outputs whose first axis is that of the samples",
                "Leave chunk_size= out, or let the model give only such outputs to the loss.",
            )

    def again(self, number: int) -> list[Tensor]:
        """The floating-point outputs for a chunk, with their graph."""
        _set_random_state(self.network.device, self.states[number])
        return signals(self.network(self.leaves, self.chunks[number][0]))

    def cut(self, parts: list[Tensor], number: int) -> list[Tensor]:
        """The rows of one chunk."""
        start = sum(self.sizes[:number])
        return [part[start : start + self.sizes[number]] for part in parts]

    def of_loss(self, targets: Any, along: list[Tensor] | None = None) -> Any:
        """The gradient of the loss in all outputs; with `along`, also its Hessian there times that."""
        free: list[Tensor] = []

        def freed(part: Tensor) -> Tensor:
            if not part.is_floating_point():
                return part
            free.append(part.detach().requires_grad_())
            return free[-1]

        loss = self.network.loss_of(mapped(self.whole, freed), targets)
        if not loss.requires_grad:
            nothing = [torch.zeros_like(part) for part in free]
            return nothing if along is None else (nothing, nothing)
        pulls = torch.autograd.grad(loss, free, create_graph=along is not None, materialize_grads=True)
        if along is None:
            return list(pulls)
        inner = _along(list(pulls), along)
        bends = (
            torch.autograd.grad(inner, free, materialize_grads=True)
            if inner.requires_grad
            else [torch.zeros_like(part) for part in free]
        )
        return [pull.detach() for pull in pulls], list(bends)


def _along(outputs: list[Tensor], direction: list[Tensor]) -> Tensor:
    """The inner product of two lists of tensors."""
    return torch.stack([(output * along).sum() for output, along in zip(outputs, direction, strict=True)]).sum()


def _pushed(outputs: list[Tensor], leaves: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> list[Tensor]:
    """`J v`: how the outputs change as the weights go in `direction`."""
    dual = [torch.zeros_like(output).requires_grad_() for output in outputs]
    back = _grad(_along(outputs, dual), leaves, create_graph=True)
    parts = [inner(direction[name], slope) for name, slope in back.items() if slope is not None]
    along = torch.stack(parts).sum() if parts else outputs[0].new_zeros(())
    if not along.requires_grad:
        return [torch.zeros_like(output) for output in outputs]
    return [part.detach() for part in torch.autograd.grad(along, dual, materialize_grads=True)]


def _twice(value: Tensor, leaves: Mapping[str, Tensor], direction: Mapping[str, Tensor], extra: Tensor | None) -> Found:
    """The gradient of `d value/dw` along `direction`, and of `extra`."""
    first = _grad(value, leaves, create_graph=True)
    parts = [inner(direction[name], slope) for name, slope in first.items() if slope is not None]
    along = torch.stack(parts).sum() if parts else value * 0
    found = _grad(along if extra is None else along + extra, leaves)
    # Where the gradient is there but bends nowhere, the product is zero.
    zeros = {name: torch.zeros_like(leaf) for name, leaf in leaves.items() if first[name] is not None}
    return {name: zeros.get(name) if part is None else part for name, part in found.items()}


def _grad(value: Tensor, leaves: Mapping[str, Tensor], *, create_graph: bool = False) -> Found:
    if not value.requires_grad:
        return dict.fromkeys(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph, allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def _add(total: Found, new: Found) -> None:
    for name, part in new.items():
        if part is not None:
            held = total[name]
            total[name] = part.detach() if held is None else held + part.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


__all__ = ["curved", "differentiated_twice", "is_plain_mean", "slopes"]
