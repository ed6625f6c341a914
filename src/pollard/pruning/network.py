"""A model as a function of its prunable weights: measured again and again, and never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pollard.errors import InvalidInput, PollardError
from pollard.pruning.scoring import Batches, Mode, Pair, Scoring
from pollard.selection import listed

T = TypeVar("T")
# What each layer was called with and gave back, by layer, in the order of the calls.
Calls = dict[str, list[tuple[Tensor, Tensor]]]


class Network:
    """What measurements are taken of: outputs and loss of `model` as functions of the weights of `names`.

    names: the prunable layers, in order. batches: one pair `(inputs, targets)` or an iterable of pairs; an iterator is
    read to its end and held, since a measurement may want it again. input_shape: of one sample, for measurements that
    look at no data; read off the first batch where it is not given.
    weights: the original weights by layer, sharing storage with the model: never written. masks: bool `(out, in)` by
    layer, what is kept so far; None for everything.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> network = Network(model, [""], (torch.ones(3, 2), torch.zeros(3, 1)), Scoring(functional.mse_loss))
    >>> network.input_shape, float(network.loss({"": torch.ones(1, 2)}, (torch.ones(3, 2), torch.zeros(3, 1))))
    ((2,), 4.0)
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        batches: Batches | None = None,
        scoring: Scoring | None = None,
        *,
        generator: torch.Generator | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.model, self.scoring = model, scoring or Scoring()
        self.generator = generator or torch.default_generator
        self.weights = {name: _weight(model, name).detach() for name in names}
        self.names = list(self.weights)
        self.masks: dict[str, Tensor] | None = None
        self.device = next(iter(self.weights.values())).device
        # An iterator serves once; anything else can be asked for its batches again.
        self._batches: Batches | None = list(batches) if isinstance(batches, Iterator) else batches
        self._input_shape = input_shape

    def kept(self) -> dict[str, Tensor]:
        """The weights where kept, 0 elsewhere; the weights themselves while everything is."""
        if self.masks is None:
            return dict(self.weights)
        return {name: torch.where(self.masks[name], weight, 0.0) for name, weight in self.weights.items()}

    def leaves(self) -> dict[str, Tensor]:
        """`kept()` as leaves of their own that require gradients: the model's parameters may be frozen."""
        return {name: weight.detach().requires_grad_() for name, weight in self.kept().items()}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample; raises InvalidInput where there is neither a batch nor a given shape."""
        return self._first[0] if self._input_shape is None else self._input_shape

    @property
    def takes_signals(self) -> bool:
        """Whether inputs are floating-point numbers, as far as is known: without a batch, they are taken to be."""
        return self._batches is None or self._first[1]

    @cached_property
    def _first(self) -> tuple[tuple[int, ...], bool]:
        """Of the first batch, the shape of a sample and whether it is of floats: asked in every round, read once."""
        inputs, _ = next(self.pairs())
        return tuple(inputs.shape[1:]), inputs.is_floating_point()

    def pairs(self) -> Iterator[Pair]:
        """The scoring batches, from the first; raises InvalidInput where there is none, or one is unfit."""
        if self._batches is None:
            raise InvalidInput("no scoring batch", "the batch that is measured on", "Pass batch=(inputs, targets).")
        empty = True
        for pair in [self._batches] if _is_pair(self._batches) else self._batches:
            yield _checked(pair, self.device)
            empty = False
        if empty:
            raise InvalidInput(
                "no scoring batch",
                "at least one pair (inputs, targets)",
                "Check that the iterable was not used up before.",
            )

    def chunks(self, pair: Pair) -> Iterator[tuple[Pair, float]]:
        """`pair` in pieces of `chunk_size` samples, each with its share of the samples."""
        inputs, targets = pair
        size = self.scoring.chunk_size or len(inputs)
        for chunk in zip(inputs.split(size), targets.split(size), strict=True):
            yield chunk, len(chunk[0]) / len(inputs)

    def __call__(self, weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The outputs for `inputs`, with `weights` in place of the layers' own."""
        state = {f"{name}.weight".lstrip("."): weight for name, weight in weights.items()}
        # In train mode batch norm writes its statistics: into copies.
        state.update({name: buffer.clone() for name, buffer in self.model.named_buffers()})
        with _told(
            "inputs that the model does not take", "inputs as in training: their dtype and shape, and samples enough"
        ):
            outputs: Tensor = functional_call(self.model, state, (inputs,), tie_weights=False)
        return outputs

    def loss(self, weights: Mapping[str, Tensor], pair: Pair) -> Tensor:
        """The mean loss over the samples of `pair`; raises InvalidInput unless it is a scalar."""
        inputs, targets = pair
        return self.loss_of(self(weights, inputs), targets)

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of `outputs`; raises InvalidInput unless it is a scalar."""
        if self.scoring.temperature != 1:
            outputs = outputs / self.scoring.temperature
        with _told("outputs and targets that the loss does not take", "targets that fit the outputs, as in training"):
            loss = (self.scoring.loss_fn or functional.cross_entropy)(outputs, targets)
        if loss.numel() != 1:
            raise InvalidInput(
                f"a loss of shape {tuple(loss.shape)}",
                "a scalar, the mean over the samples",
                "Use reduction='mean' in the loss.",
            )
        return loss

    def traced(self, weights: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Calls]:
        """The outputs for `inputs`, and what every layer was given and gave back."""
        calls: Calls = {}

        def keep(name: str, _module: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
            calls.setdefault(name, []).append((given[0], made))

        with ExitStack() as stack:
            for name in self.names:
                hook = self.model.get_submodule(name).register_forward_hook(partial(keep, name))
                stack.callback(hook.remove)
            return self(weights, inputs), calls

    def inputs_of(self, weights: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
        """What each layer is given when the network sees `inputs`: `(samples, in)` by layer, over positions and calls."""
        with torch.no_grad():
            _, calls = self.traced(weights, inputs)
        return {
            name: torch.cat([given.reshape(-1, given.shape[-1]) for given, _ in of_layer])
            for name, of_layer in self.reached({name: calls.get(name) for name in self.names}).items()
        }

    def gates(self) -> dict[str, Tensor]:
        """One factor for each weight, 1 where it is kept and 0 elsewhere, as leaves that require gradients."""
        masks = self.masks or {name: torch.ones_like(weight) for name, weight in self.weights.items()}
        return {name: masks[name].to(weight).detach().requires_grad_() for name, weight in self.weights.items()}

    def reached(self, found: Mapping[str, T | None]) -> dict[str, T]:
        """What was `found` by layer, once it is sure that the loss depends on all; raises InvalidInput otherwise."""
        return {name: self._reached(name, part) for name, part in found.items()}

    def _reached(self, name: str, part: T | None) -> T:
        if part is None:
            raise InvalidInput(
                f"a loss that does not depend on layer {name!r}",
                "a loss that every layer takes part in",
                "Leave the layer out with layers=.",
            )
        return part

    @contextmanager
    def undisturbed(self, mode: Mode | None = None) -> Iterator[None]:
        """Puts the model in `mode`, by default the scoring's; training flags and torch's random state come back after."""
        flags = {module: module.training for module in self.model.modules()}
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.inference_mode(mode=False), torch.random.fork_rng(devices=devices), torch.enable_grad():
                self.model.train((mode or self.scoring.mode) == "train")
                yield
        finally:
            for module, training in flags.items():
                module.training = training

    def __repr__(self) -> str:
        return f"Network({len(self.names)} layers: {listed(self.names)})"


def held(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by each module that holds them: a tied one under several names, a module under its first.

    What `functional_call` is to be given with `tie_weights=False`: left to tie names itself, torch takes the two names of a
    module that stands in two places for two tensors, and afterwards leaves ours in the place of the parameter.

    >>> shared = nn.Linear(2, 2, bias=False)
    >>> list(held(nn.Sequential(shared, nn.ReLU(), shared)))
    ['0.weight']
    """
    return {
        f"{name}.{key}".lstrip("."): tensor
        for name, module in model.named_modules()
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }


@contextmanager
def _told(got: str, expected: str) -> Iterator[None]:
    """What a model or a loss of the user's raises, as an InvalidInput that says where it came from."""
    try:
        yield
    except (PollardError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if "DefaultCPUAllocator" in str(error):  # out of memory: it is not the inputs that are wrong
            raise
        fix = "Try model(inputs) and loss_fn(outputs, targets) on the scoring batch, in the mode it is scored in."
        raise InvalidInput(f"{got}: {error}", expected, fix) from error


def _checked(pair: object, device: torch.device) -> Pair:
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
    return inputs, targets


def _is_pair(value: object) -> TypeGuard[Pair]:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
