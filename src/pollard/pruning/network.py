"""A model as a function of its prunable weights: measured again and again, and never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pollard.composites import composed
from pollard.errors import InvalidInput, PollardError
from pollard.formats.topology import Topology
from pollard.pruning.batches import arguments, between, checked, count, is_pair, mapped, pieces, signals, tensors
from pollard.pruning.scoring import Batches, Mode, Pair, Scoring
from pollard.selection import listed

HALVES = (torch.float16, torch.bfloat16)
# What each layer was called with and gave back, by layer, in the order of the calls.
Calls = dict[str, list[tuple[Tensor, Tensor]]]


class Network:
    """What measurements are taken of: outputs and loss of `model` as functions of the weights of `names`.

    names: the prunable layers, in order. batches: one pair `(inputs, targets)` or an iterable of pairs; an iterator is
    read to its end and held, since a measurement may want it again. Inputs and targets are tensors, or tuples, lists or dicts
    of them: a model is called with the parts of a tuple one by one, with those of a dict by name. input_shape: of one
    sample, for measurements that look at no data; read off the first batch where it is not given.
    weights: the original weights by layer, sharing storage with the model: never written. masks: bool `(out, in)` by
    layer, what is kept so far; None for everything. unreached: layers that some measurement found no gradient for.
    takes_own_loss: whether the model takes its loss itself, as those of transformers do of a dict that holds labels: its
    outputs are that loss alone then, `(1,)`.

    A model in half precision is measured in float32, of which copies are held: products of small numbers vanish in half.

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
        names = list(names)
        # Weights that are no linear layer's are seen as one: in a copy that shares all tensors.
        self.model, self.scoring = composed(model, names), scoring or Scoring()
        if not isinstance(generator, torch.Generator | None):
            raise InvalidInput(
                f"generator={generator!r}", "a torch.Generator", "torch.Generator().manual_seed(0) is one."
            )
        self.generator = torch.default_generator if generator is None else generator
        self.wide = any(parameter.dtype in HALVES for parameter in model.parameters())
        self.weights = {name: self.widened(_weight(self.model, name).detach()) for name in names}
        own = {f"{name}.weight".lstrip(".") for name in self.weights}
        self._rest = {n: self.widened(t) for n, t in held(self.model).items() if t.dtype in HALVES and n not in own}
        self.unreached: set[str] = set()
        self.takes_own_loss = False
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

    def widened(self, tensor: Tensor) -> Tensor:
        """`tensor` in the precision that is measured in."""
        return tensor.detach().float() if self.wide and tensor.dtype in HALVES else tensor

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample; raises InvalidInput where there is neither a batch nor a given shape."""
        return tuple(tensors(self._first)[0].shape[1:]) if self._input_shape is None else self._input_shape

    @property
    def takes_signals(self) -> bool:
        """Whether inputs are floating-point numbers, as far as is known: without a batch, they are taken to be."""
        return self._batches is None or len(signals(self._first)) == len(tensors(self._first))

    def like_inputs(self, samples: int, fill: Callable[[tuple[int, ...]], Tensor]) -> Any:
        """Inputs of the structure that the model takes, made by `fill` of the shape of so many samples."""
        if self._input_shape is not None:
            return fill((samples, *self._input_shape))
        return mapped(self._first, lambda part: fill((samples, *part.shape[1:])))

    @cached_property
    def _first(self) -> Any:
        """A sample of the first batch: asked for in every round, read once."""
        return mapped(next(self.pairs())[0], lambda part: part[:1].clone())

    @property
    def pieces(self) -> int:
        """How many times a measurement passes the scoring batches through the network, as far as is known beforehand."""
        alone = self._batches is None or isinstance(self._batches, Mapping) or is_pair(self._batches)
        batches = 1 if alone else len(self._batches) if isinstance(self._batches, Sized) else 1
        return batches if self._batches is None else batches * sum(1 for _ in self.chunks(next(self.pairs())))

    @property
    def samples(self) -> int:
        """How many samples of the first batch pass the network at once; 0 without any."""
        return 0 if self._batches is None else count(next(self.chunks(next(self.pairs())))[0][0])

    def pairs(self) -> Iterator[Pair]:
        """The scoring batches, from the first; raises InvalidInput where there is none, or one is unfit."""
        if self._batches is None:
            raise InvalidInput("no scoring batch", "the batch that is measured on", "Pass batch=(inputs, targets).")
        empty = True
        alone = isinstance(self._batches, Mapping) or is_pair(self._batches)
        for batch in [self._batches] if alone else self._batches:
            self.takes_own_loss = isinstance(batch, Mapping) and self.scoring.loss_fn is None
            inputs, targets = checked(batch, self.device)
            yield mapped(inputs, self.widened), mapped(targets, self.widened)
            empty = False
        if empty:
            raise InvalidInput(
                "no scoring batch",
                "at least one pair (inputs, targets)",
                "Check that the iterable was not used up before.",
            )

    def of_few(self, samples: int) -> Network:
        """What can be measured without a trace: this network, that looks at the first `samples` of its first batch alone."""
        few, pair = copy(self), between(next(self.pairs()), 0, samples) if samples else None
        few.generator = torch.Generator(self.generator.device).set_state(self.generator.get_state())
        few.unreached = set()
        few._batches = None if pair is None else [pair[0] if self.takes_own_loss else pair]  # noqa: SLF001 - of its own kind
        return few

    def chunks(self, pair: Pair) -> Iterator[tuple[Pair, float]]:
        """`pair` in pieces of `chunk_size` samples, each with its share of the samples."""
        samples = count(pair[0])
        for piece in pieces(pair, self.scoring.chunk_size or samples):
            yield piece, count(piece[0]) / samples

    def __call__(self, weights: Mapping[str, Tensor], inputs: Any) -> Any:
        """The outputs for `inputs`, with `weights` in place of the layers' own."""
        state = self._rest | {f"{name}.weight".lstrip("."): weight for name, weight in weights.items()}
        # In train mode batch norm writes its statistics: into copies.
        state |= self._buffers()
        fit = "inputs as in training: their dtype and shape, and samples enough"
        # Fused attention has no second derivative.
        with _told("inputs that the model does not take", fit), sdpa_kernel(SDPBackend.MATH):
            outputs = self.with_state(state, inputs)
        return _loss_within(outputs) if self.takes_own_loss else outputs

    def with_state(self, state: Mapping[str, Tensor], inputs: Any) -> Any:
        """The outputs for `inputs`, with tensors by their names in place of the model's, called as training or the user does."""
        forward, (args, kwargs) = self.scoring.forward, arguments(inputs)
        if forward is None:
            return functional_call(self.model, dict(state), args, kwargs, tie_weights=False)
        named = {f"model.{name}": tensor for name, tensor in state.items()}
        return functional_call(_Called(self.model, forward), named, (inputs,), tie_weights=False)

    def require_outputs(self, what: str) -> None:
        """Raises InvalidInput where the model takes its loss itself: `what` is asked of outputs, which nobody sees then."""
        _ = self._first
        if self.takes_own_loss:
            raise InvalidInput(
                f"a batch that is a dict, for {what}",
                "outputs of the model and a loss of them",
                "Pass batch=(inputs, targets) and loss_fn=(outputs, targets) -> scalar.",
            )

    def _buffers(self) -> dict[str, Tensor]:
        """Copies of the model's buffers; one that two modules share is one copy."""
        copies: dict[int, Tensor] = {}
        found = {name: tensor for name, tensor in held(self.model).items() if not isinstance(tensor, nn.Parameter)}
        return {
            name: copies.setdefault(id(tensor), self._rest.get(name, tensor).clone()) for name, tensor in found.items()
        }

    def loss(self, weights: Mapping[str, Tensor], pair: Pair) -> Tensor:
        """The mean loss over the samples of `pair`; raises InvalidInput unless it is a scalar."""
        inputs, targets = pair
        return self.loss_of(self(weights, inputs), targets)

    def loss_of(self, outputs: Any, targets: Any) -> Tensor:
        """The mean loss of `outputs`; raises InvalidInput unless it is a scalar."""
        if self.takes_own_loss:
            return self._own_loss(outputs)
        heat = self.scoring.temperature or 1.0
        if heat != 1:
            outputs = mapped(outputs, lambda part: part / heat if part.is_floating_point() else part)
        with _told("outputs and targets that the loss does not take", "targets that fit the outputs, as in training"):
            loss = (self.scoring.loss_fn or functional.cross_entropy)(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InvalidInput(
                f"a loss of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a loss of type {type(loss)}",
                "a scalar, the mean over the samples",
                "Use reduction='mean' in the loss.",
            )
        return loss

    def _own_loss(self, outputs: Any) -> Tensor:
        if not isinstance(outputs, Tensor):
            raise InvalidInput(
                f"outputs of type {type(outputs).__name__} without a loss, for a batch that is a dict",
                "outputs with a `loss`, as models of transformers give for a batch that holds labels",
                "Put labels into the batch, or pass loss_fn=(outputs, batch) -> scalar.",
            )
        if (self.scoring.temperature or 1.0) != 1:
            raise InvalidInput(
                f"temperature={self.scoring.temperature} for a loss that the model takes itself",
                "outputs to divide by it",
                "Pass temperature=1, or batch=(inputs, targets) and loss_fn=(outputs, targets) -> scalar.",
            )
        return outputs.mean()

    def traced(self, weights: Mapping[str, Tensor], inputs: Any) -> tuple[Any, Calls]:
        """The outputs for `inputs`, and what every layer was given and gave back."""
        calls: Calls = {}

        def keep(name: str, given: Tensor, made: Tensor) -> Tensor:
            calls.setdefault(name, []).append((given, made))
            return made.clone()  # what follows may write into it, as nn.ReLU(inplace=True) does

        return self._watched(weights, inputs, keep), calls

    def look(self, weights: Mapping[str, Tensor], inputs: Any, see: Callable[[str, Tensor], None]) -> Any:
        """Shows `see` what each layer is given, `(rows, in)`, whenever it is called, as the network sees `inputs`."""

        def show(name: str, given: Tensor, made: Tensor) -> Tensor:
            see(name, given.reshape(given.shape[:-1].numel(), given.shape[-1]))
            return made

        with torch.no_grad():
            return self._watched(weights, inputs, show)

    def inputs_of(self, weights: Mapping[str, Tensor], inputs: Any) -> dict[str, Tensor]:
        """What each layer is given when the network sees `inputs`: `(rows, in)` by layer, over positions and calls."""
        rows: dict[str, list[Tensor]] = {name: [] for name in self.names}
        self.look(weights, inputs, lambda name, given: rows[name].append(given.clone()))
        never = {name: weight.new_zeros(0, weight.shape[1]) for name, weight in self.weights.items()}
        return {name: torch.cat([never[name], *given]) for name, given in rows.items()}

    def _watched(self, weights: Mapping[str, Tensor], inputs: Any, see: Callable[[str, Tensor, Tensor], Tensor]) -> Any:
        def hook(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> Tensor:
            return see(name, args[0] if args else kwargs["input"], made)

        with ExitStack() as stack:
            for name in self.names:
                layer = self.model.get_submodule(name)
                handle = layer.register_forward_hook(partial(hook, name), with_kwargs=True)
                stack.callback(handle.remove)
            return self(weights, inputs)

    def gates(self) -> dict[str, Tensor]:
        """One factor for each weight, 1 where it is kept and 0 elsewhere, as leaves that require gradients."""
        masks = self.masks or {name: torch.ones_like(weight) for name, weight in self.weights.items()}
        return {name: masks[name].to(weight).detach().requires_grad_() for name, weight in self.weights.items()}

    def reached(self, found: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """What was `found` by layer, zero for a layer that the loss did not depend on, which is noted in `unreached`.

        A mixture's part that saw no sample, or a layer that is not used. Raises InvalidInput where no layer was reached.
        """
        missing = [name for name, part in found.items() if part is None]
        if missing and len(missing) == len(found):
            raise InvalidInput(
                f"a loss that does not depend on layer {listed(missing)}",
                "a loss that depends on the layers that are scored",
                "Look for detach() or no_grad() in the model, or leave layers out with layers=.",
            )
        self.unreached.update(missing)
        return {name: torch.zeros_like(self.weights[name]) if part is None else part for name, part in found.items()}

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


class _Called(nn.Module):
    """A model that is called by a function of the user's."""

    def __init__(self, model: nn.Module, by: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model, self._by = model, by

    def forward(self, inputs: Any) -> Any:
        return self._by(self.model, inputs)


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


def _loss_within(outputs: Any) -> Any:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return outputs if loss is None else loss.reshape(1)


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


def weights_of(model: nn.Module, plan: Mapping[str, Topology]) -> dict[str, Tensor]:
    """The weight `(out, in)` of each layer of `plan`, without a gradient; raises InvalidInput unless dense `model` has it in that shape.

    >>> weights_of(nn.Linear(3, 2), {"": Topology.full((2, 3))})[""].shape
    torch.Size([2, 3])
    """
    modules = dict(composed(model, plan).named_modules())
    found = {}
    for name, topology in plan.items():
        weight = modules[name]._parameters.get("weight") if name in modules else None  # noqa: SLF001 - of its own, not read past it
        if not isinstance(weight, Tensor) or tuple(weight.shape) != topology.shape:
            got = f"a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no dense weight"
            raise InvalidInput(
                f"{got} in layer {name!r}",
                f"the weight {topology.shape} of the plan",
                "Pass the model that was pruned.",
            )
        found[name] = weight.detach()
    return found


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
