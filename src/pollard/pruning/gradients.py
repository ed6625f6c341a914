"""The gradient of a loss over scoring batches, taken without leaving a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pollard.errors import InvalidInput

Pair = tuple[Tensor, Tensor]
Batches = Pair | Iterable[Pair]
Mode = Literal["eval", "train"]
Accumulate = Literal["signed", "absolute"]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the loss of the scoring batches is differentiated.

    loss_fn: `(outputs, targets) -> scalar`, the mean over the samples; None is cross-entropy.
    mode: what batch norm and dropout do meanwhile. `eval`, as the authors of SNIP, or `train`, as most later code.
    accumulate: over several batches, average the gradients (`signed`: the gradient of one big batch) or their magnitudes
    (`absolute`: Frankle et al., Pruning neural networks at initialization, ICLR 2021).
    chunk_size: samples that pass the network at once. It bounds memory and, but for batch norm in `train` mode and
    floating-point rounding, changes nothing. None passes a batch whole.

    Raises InvalidInput for an unknown mode or accumulate, or a chunk size below 1.
    """

    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None
    mode: Mode = "eval"
    accumulate: Accumulate = "signed"
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, get_args(Mode)),
            ("accumulate", self.accumulate, get_args(Accumulate)),
        ):
            if value not in allowed:
                raise InvalidInput(
                    f"{name}={value!r}", "one of " + ", ".join(allowed), f"Leave {name}= out for {allowed[0]!r}."
                )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise InvalidInput(
                f"chunk_size={self.chunk_size}", "at least 1 sample", "Leave chunk_size= out to take batches whole."
            )


def loss_gradients(model: nn.Module, layers: Iterable[str], batch: Batches, scoring: Scoring) -> dict[str, Tensor]:
    """The gradient `(out, in)` of the mean loss over all samples of `batch`, for the weight of each of `layers`.

    `batch` is one `(inputs, targets)` or an iterable of them, read once to its end. The model is as before afterwards,
    also after an error: training flags, buffers, `.grad` and torch's random state. Raises InvalidInput for a batch that is
    empty, on another device or not a pair of tensors, a loss that is not a scalar, and a layer the loss does not reach.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> batch = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.zeros(2)
    >>> loss_gradients(model, [""], batch, Scoring(lambda outputs, _: outputs.mean(), chunk_size=1))
    {'': tensor([[2., 1.]])}
    """
    # Leaves of their own, sharing storage: the model's parameters may be frozen, and their .grad is not ours.
    weights = {name: _weight(model, name).detach().requires_grad_() for name in layers}
    device = next(iter(weights.values())).device
    mean: dict[str, Tensor] = {}
    seen = 0
    with _undisturbed(model, scoring.mode, device):
        for inputs, targets in _pairs(batch, device):
            gradients = _batch_gradients(model, weights, (inputs, targets), scoring)
            if scoring.accumulate == "absolute":
                gradients = {name: gradient.abs_() for name, gradient in gradients.items()}
            seen += len(inputs)
            _average(mean, gradients, len(inputs) / seen)
    if not seen:
        raise InvalidInput(
            "no scoring batch", "at least one pair (inputs, targets)", "Check that the iterable was not used up before."
        )
    return mean


def _batch_gradients(
    model: nn.Module, weights: Mapping[str, Tensor], batch: Pair, scoring: Scoring
) -> dict[str, Tensor]:
    inputs, targets = batch
    size = scoring.chunk_size or len(inputs)
    loss_fn = scoring.loss_fn or functional.cross_entropy
    # In train mode batch norm writes its statistics: into copies.
    state = {f"{name}.weight".lstrip("."): weight for name, weight in weights.items()}
    state.update({name: buffer.clone() for name, buffer in model.named_buffers()})
    mean: dict[str, Tensor] = {}
    seen = 0
    for chunk, wanted in zip(inputs.split(size), targets.split(size), strict=True):
        loss = loss_fn(functional_call(model, state, (chunk,)), wanted)
        if loss.numel() != 1:
            raise InvalidInput(
                f"a loss of shape {tuple(loss.shape)}",
                "a scalar, the mean over the samples",
                "Use reduction='mean' in the loss.",
            )
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        seen += len(chunk)
        _average(mean, dict(zip(weights, map(_reached, weights, gradients), strict=True)), len(chunk) / seen)
    return mean


def _average(mean: dict[str, Tensor], new: Mapping[str, Tensor], share: float) -> None:
    """Moves the running mean by `share` towards `new`, in place; the first batch is taken as it is, bit for bit."""
    for name, value in new.items():
        mean[name] = mean[name].lerp_(value, share) if name in mean else value


def _reached(name: str, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise InvalidInput(
            f"a loss that does not depend on layer {name!r}",
            "a loss that every layer takes part in",
            "Leave the layer out with layers=.",
        )
    return gradient


def _pairs(batch: Batches, device: torch.device) -> Iterator[Pair]:
    for pair in [batch] if _is_pair(batch) else batch:
        if not _is_pair(pair):
            raise InvalidInput(
                f"a scoring batch of type {type(pair).__name__}",
                "a pair of tensors (inputs, targets), or an iterable of such pairs",
                "Pass batch=(inputs, targets).",
            )
        inputs, targets = pair
        if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets) or len(inputs) == 0:
            raise InvalidInput(
                f"inputs of shape {tuple(inputs.shape)} with targets of shape {tuple(targets.shape)}",
                "as many inputs as targets along the first axis, at least one",
                "Pass matching samples.",
            )
        if inputs.device != device or targets.device != device:
            raise InvalidInput(
                f"a scoring batch on {inputs.device} and {targets.device}",
                f"tensors on {device}, as the model",
                "Move them with .to(device).",
            )
        yield inputs, targets


def _is_pair(value: object) -> TypeGuard[Pair]:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


@contextmanager
def _undisturbed(model: nn.Module, mode: Mode, device: torch.device) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            model.train(mode == "train")
            yield
    finally:
        for module, training in flags.items():
            module.training = training
