"""A layer's weight as methods see it, whatever stores it: kept values, their gradients, and one way to move them all.

The only place that writes values and optimizer state. Compressed storage holds `(nnz,)` tensors; masked storage, the slow
twin, holds dense ones that are zero wherever nothing is kept.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from pollard.kernels.indices.rewire import move_values
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.nn.surgery import sparse_layers
from pollard.ops.operators import writes
from pollard.selection import LayerFilter, is_made_anew, refuse_unready, select
from pollard.training.optimizers import require_stepped
from pollard.training.passes import Passes, is_finite
from pollard.training.wrapping import states_of, stray, tensors_in, within

Fill = float | Tensor
# The entry of an optimizer's state that says how many steps it had taken when each weight came, where they are counted so.
JOINED = "joined"
# The entries that hold a running mean of the gradients.
MOMENTA = ("momentum_buffer", "exp_avg")


class Weight(ABC):
    """The weight of one sparse layer, with the state that `optimizer`, and whatever it is wrapped around, holds for it.

    parameter: what the optimizer steps. topology: what is kept now. passes: what went through the layer, for growth.
    memory: `(out, in)`, what the weights are that are not kept, for a method that holds something dense.
    """

    def __init__(self, name: str, optimizer: Optimizer, topology: Topology) -> None:
        self.name, self.optimizer, self.topology = name, optimizer, topology
        self.optimizers = within(optimizer)
        self.memory: Tensor | None = None
        # State that stands where `topology` says; what was loaded since does not count among it.
        self._stood: list[weakref.ref[Tensor]] = []

    layer: SparseLinear | MaskedLinear
    parameter: nn.Parameter
    passes: Passes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stood": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.passes.recorder.own()

    def values(self) -> Tensor:
        """The kept values `(nnz,)`, in the order of the topology; not to be written to."""
        return self.kept_of(self.parameter.detach())

    def gradient(self) -> Tensor | None:
        """Their gradients `(nnz,)`, if there are any."""
        return None if self.parameter.grad is None else self.kept_of(self.parameter.grad)

    def momentum(self) -> Tensor | None:
        """The optimizer's running mean of their gradients `(nnz,)`, divided by its root mean square where it keeps one.

        None before the first step. Raises InvalidInput where the optimizer keeps no momentum.
        """
        state = {key: entry for each in reversed(self.states()) for key, entry in each.items()}
        if not state and not any(group.get("momentum") == 0 for group in self.optimizer.param_groups):
            return None
        first = next((state[key] for key in MOMENTA if key in state), None)
        if not isinstance(first, Tensor):
            raise InvalidInput(
                f"{type(self.optimizer).__name__} without momentum",
                "an optimizer that keeps a running mean of gradients",
                "Use SGD with momentum=0.9, or Adam.",
            )
        second = state.get("exp_avg_sq")
        return self.kept_of(first if second is None else first / (second.sqrt() + 1e-8))

    def forget_momentum(self) -> None:
        """Let the optimizer's running mean of their gradients begin at zero again."""
        for state in self.states():
            for key in MOMENTA:
                if isinstance(state.get(key), Tensor):
                    state[key].zero_()

    def states(self) -> list[dict[str, Any]]:
        """What each of the optimizers holds for the parameter, and none that holds nothing."""
        return list(states_of(self.parameter, self.optimizers))

    @property
    def size(self) -> int:
        """Weights a grain."""
        return self.topology.pattern.size

    def by_grain(self, scores: Tensor) -> Tensor:
        """The sum of `scores` `(nnz,)` over each grain, `(grains,)`."""
        return scores if self.size == 1 else scores.view(-1, self.size).sum(1)

    @abstractmethod
    def kept_of(self, tensor: Tensor) -> Tensor:
        """The entries of `tensor`, of the parameter's shape, at the kept weights: `(nnz,)`."""

    @abstractmethod
    def add_gradient(self, extra: Tensor) -> None:
        """Add `extra` `(nnz,)` to the gradient of the kept weights."""

    @abstractmethod
    def active(self) -> Tensor | None:
        """Which of the kept weights the forward pass reads, bool `(nnz,)`; None for all."""

    @abstractmethod
    def use(self, active: Tensor | None) -> None:
        """Let the forward pass read only the weights that bool `active` `(nnz,)` names, or all of them again."""

    def move(self, after: Topology, source: Tensor, fill: Fill = 0.0) -> None:
        """Keep `after` from now on: values and optimizer state move together.

        source: int32 `(grains,)`, where each grain of `after` stood before, -1 for a grown one. fill: the values of grown
        weights, a number or one for each. What stays keeps its value and every per-weight entry of the optimizer's state,
        bit for bit; state of what comes starts at zero, its own steps at those taken. The gradient is gone: it was of another topology.
        """
        moved = [
            (state, key, self._moved(state[key], after, source, _start_of(state, key)))
            for state, key in self._per_weight()
        ]
        self._keep(after, self._moved_values(after, source, fill))
        for state, key, entry in moved:
            state[key] = entry
        self.parameter.grad = None
        self.topology = after

    def remember(self) -> None:
        """A step was taken: what the optimizers hold now stands where `topology` says."""
        entries = (entry for state in self.states() for entry in state.values())
        self._stood = [weakref.ref(entry) for entry in entries if isinstance(entry, Tensor) and entry.dim()]

    def follow(self) -> bool:
        """Whether the layer keeps another topology than it did, as after its `load_state_dict`: it is this one's too, then.

        State that was there before follows by place, zero where nothing was; state that was loaded since belongs to what the
        layer keeps now.
        """
        after = self._elsewhere()
        if after is None:
            return False
        change = self.topology.difference(after)
        source = torch.full((after.grains,), -1, dtype=torch.int32, device="cpu")
        source[change.kept_there] = change.kept_here.int()
        stood = {id(entry) for entry in (held() for held in self._stood) if entry is not None}
        for state in self.states():
            for key, entry in state.items():
                if id(entry) in stood:
                    state[key] = self._moved(entry, after, source, _start_of(state, key))
        self.topology = after
        return True

    @abstractmethod
    def _elsewhere(self) -> Topology | None:
        """What the layer keeps, where that is no longer `topology`."""

    @abstractmethod
    def _moved(self, old: Tensor, after: Topology, source: Tensor, fill: Fill) -> Tensor:
        """`old`, of the parameter's shape, on `after`: to take its place, and it may be written over."""

    def _moved_values(self, after: Topology, source: Tensor, fill: Fill) -> Tensor:
        """The parameter's values on `after`, in its own memory where its size does not change."""
        return self._moved(self.parameter.detach(), after, source, fill)

    @abstractmethod
    def _keep(self, after: Topology, values: Tensor) -> None:
        """Make `after` and `values` the layer's own."""

    def fault(self) -> InvalidInput | None:
        """What keeps an update from moving this weight, if anything does."""
        gradient = self.gradient()
        for what, numbers in (("weights", self.values()), ("gradients", gradient)):
            if numbers is not None and not is_finite(numbers):
                return InvalidInput(
                    f"{what} of layer {self.name!r} that are not finite",
                    "finite numbers to choose by",
                    "Skip the step, as the optimizer would spoil its weights too; look for NaN in inputs and loss.",
                )
        if any(isinstance(each, LBFGS) for each in self.optimizers):  # even before it has a state
            return self._unmovable("of all weights together")
        if place := stray(self.parameter, self.optimizers):
            return self._unmovable(f"in {place}, where nothing says which parameter it is of,")
        try:
            self._per_weight()
        except InvalidInput as error:
            return error
        return None

    def _per_weight(self) -> list[tuple[dict[str, Any], str]]:
        entries = [(state, key) for state in self.states() for key in state]
        return [(state, key) for state, key in entries if self._is_per_weight(key, state[key])]

    def _is_per_weight(self, key: str, entry: object) -> bool:
        several = not isinstance(entry, Tensor) and any(True for _ in tensors_in(entry))
        if not several and (not isinstance(entry, Tensor) or entry.dim() == 0):
            return False
        if isinstance(entry, Tensor) and entry.shape == self.parameter.shape:
            return True
        shape = f"of shape {tuple(entry.shape)}" if isinstance(entry, Tensor) else "of several tensors"
        raise self._unmovable(f"{key!r} {shape}")

    def _unmovable(self, state: str) -> InvalidInput:
        return InvalidInput(
            f"{type(self.optimizer).__name__} with state {state} for layer {self.name!r}, "
            f"whose parameter has shape {tuple(self.parameter.shape)}",
            "state with one entry for each weight, or one for all",
            "Use an optimizer that works weight by weight: SGD, Adam, AdamW, RMSprop, Adagrad and others.",
        )


def _start_of(state: dict[str, Any], key: str) -> float:
    """What the entry `key` of a newcomer's state starts at."""
    return float(state["step"]) if key == JOINED else 0.0


class CompressedWeight(Weight):
    """What is kept, and nothing else, in a `SparseLinear`."""

    layer: SparseLinear

    def __init__(self, name: str, layer: SparseLinear, optimizer: Optimizer) -> None:
        super().__init__(name, optimizer, layer.topology)
        self.layer, self.passes = layer, Passes(name, layer)
        self._spare: Tensor | None = None

    @property
    def parameter(self) -> nn.Parameter:  # type: ignore[override]  # loading a checkpoint may not replace it, but reading it is cheap
        """The layer's values."""
        return self.layer.values

    def kept_of(self, tensor: Tensor) -> Tensor:
        """`tensor` itself: it has one entry for each kept weight."""
        return tensor

    def add_gradient(self, extra: Tensor) -> None:
        """Add in place."""
        assert self.parameter.grad is not None
        self.parameter.grad.add_(extra)

    def active(self) -> Tensor | None:
        """The layer's own."""
        return self.layer.active

    def use(self, active: Tensor | None) -> None:
        """Given to the layer as it is."""
        self.layer.active = None if active is None else active.to(self.layer.values.device)

    def _moved(self, old: Tensor, after: Topology, source: Tensor, fill: Fill) -> Tensor:
        spare, self._spare = self._spare, None
        fits = spare is not None and spare.shape == (after.nnz,) and spare.dtype == old.dtype
        new = move_values(old, source, fill, size=after.pattern.size, out=spare if fits else None)
        # What moved out of a tensor leaves it to the next that moves: fresh memory costs more than all else.
        self._spare = old if old.is_contiguous() else None
        return new

    def _elsewhere(self) -> Topology | None:
        held = self.layer.topology
        return None if held is self.topology or held.same_as(self.topology) else held

    def _moved_values(self, after: Topology, source: Tensor, fill: Fill) -> Tensor:
        # Others hold on to the parameter's memory, as DistributedDataParallel does.
        old = self.parameter.detach()
        new = self._moved(old, after, source, fill)
        return old.copy_(new) if old.shape == new.shape else new

    def _keep(self, after: Topology, values: Tensor) -> None:
        self._spare = None
        self.layer.keep_(after, values)


class MaskedWeight(Weight):
    """A dense weight under a mask, in a `MaskedLinear`: what is dropped is zero, in the weight and in the state."""

    layer: MaskedLinear

    def __init__(self, name: str, layer: MaskedLinear, optimizer: Optimizer) -> None:
        super().__init__(name, optimizer, layer.topology)
        self.layer, self.passes = layer, Passes(name, layer, whole=True)
        self._mask = layer.mask, writes(layer.mask)
        for held in (layer.weight, *(entry for state in self.states() for entry in state.values())):
            if isinstance(held, Tensor) and held.shape == layer.mask.shape:
                self._drop_rest(held)

    @property
    def parameter(self) -> nn.Parameter:  # type: ignore[override]  # see CompressedWeight
        """The layer's dense weight."""
        # Where it has come to be made anew, a step refuses; optimizers that step others ask as well, and are to hear nothing of it.
        return cast("nn.Parameter", self.layer.weight)

    def kept_of(self, tensor: Tensor) -> Tensor:
        """Read at the kept weights."""
        return SparseMatrix.from_dense(tensor, self.topology).values

    def add_gradient(self, extra: Tensor) -> None:
        """Spread over the dense gradient."""
        assert self.parameter.grad is not None
        self.parameter.grad.add_(SparseMatrix(extra, self.topology).to_dense())

    def active(self) -> Tensor | None:
        """Read off the mask."""
        return None if self.layer.active is None else self.kept_of(self.layer.active.float()) > 0

    def use(self, active: Tensor | None) -> None:
        """Spread over a mask."""
        place = self.layer.mask.device
        spread = None if active is None else SparseMatrix(active.to(place).float(), self.topology).to_dense() > 0
        self.layer.active = spread

    def _moved(self, old: Tensor, after: Topology, source: Tensor, fill: Fill) -> Tensor:
        grown = (source < 0).repeat_interleave(after.pattern.size).to(old.device)
        kept = torch.where(grown, 0.0, SparseMatrix.from_dense(old, after).values)
        kept[grown] = fill if isinstance(fill, float) else fill.to(kept)
        return old.copy_(SparseMatrix(kept, after).to_dense())

    def _keep(self, after: Topology, values: Tensor) -> None:
        del values  # written into the weight already
        self.layer.mask.copy_(after.mask())
        self._mask = self.layer.mask, writes(self.layer.mask)

    def _elsewhere(self) -> Topology | None:
        mask, before = self._mask
        if self.layer.mask is mask and writes(mask) == before:
            return None
        self._mask, held = (self.layer.mask, writes(self.layer.mask)), self.layer.topology
        return None if held.same_as(self.topology) else held

    @torch.no_grad()
    def _drop_rest(self, tensor: Tensor) -> None:
        tensor.masked_fill_(~self.layer.mask, 0.0)


def refuse_made_anew(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raises InvalidInput where something of torch's makes the weight of one of `layers` anew at each call: what is stepped is another."""
    refuse_unready(model, [name for name, layer in layers.items() if is_made_anew(layer)])


def no_gradient(weights: Sequence[Weight]) -> InvalidInput | None:
    """What keeps an update from scoring by gradients, if anything does; a single layer without one counts as zero."""
    if not weights or any(weight.parameter.grad is not None for weight in weights):
        return None
    return InvalidInput(
        f"an update without a gradient of layer {weights[0].name!r}",
        "a gradient to score by",
        "Call loss.backward() before step().",
    )


def sparse_weights(model: nn.Module, optimizer: Optimizer, layers: LayerFilter = None) -> dict[str, Weight]:
    """The weights of the sparse layers of `model` that `layers` selects and that are trained, by name.

    Raises NothingMatched where there is none, InvalidInput where `optimizer` does not step one of them.
    """
    sparse = sparse_layers(model)
    chosen = select(sparse, layers)
    refuse_made_anew(model, {name: sparse[name] for name in chosen})
    weights = {name: _of(name, sparse[name], optimizer) for name in chosen}
    trained = {name: weight for name, weight in weights.items() if weight.parameter.requires_grad}
    require_stepped(optimizer, {name: weight.parameter for name, weight in trained.items()})
    return trained


def _of(name: str, layer: SparseLinear | MaskedLinear, optimizer: Optimizer) -> Weight:
    if isinstance(layer, SparseLinear):
        return CompressedWeight(name, layer, optimizer)
    return MaskedWeight(name, layer, optimizer)
