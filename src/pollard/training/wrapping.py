"""Optimizers around optimizers: one of ours that stands in front of another, and what is found within those of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pollard.errors import StoreError

# The entry of a state_dict that is of the wrapper, beside `state` and `param_groups`, which are of what it stands in front of.
OWN = "sparsifier"


class Wrapper(Optimizer, ABC):
    """A torch optimizer that stands in front of `optimizer`: groups, state and defaults are that one's, read when asked for.

    A subclass says what a step is, and what it adds to the state. Hooks registered here are its own; a copy or a pickle
    leaves them behind, as torch's optimizers do, and whatever a scheduler has put in the place of `step`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        # Not Optimizer.__init__, which would begin a state and groups of its own: this is how torch completes an unpickled one.
        Optimizer.__setstate__(self, {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of what this stands in front of."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """That of what this stands in front of."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of what this stands in front of."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let what this stands in front of throw its gradients away."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Step these parameters too."""
        self.optimizer.add_param_group(param_group)

    @abstractmethod
    def own_state_dict(self) -> dict[str, Any]:
        """What `state_dict()` holds besides the state of what this stands in front of."""

    @abstractmethod
    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `own_state_dict` gave; raises StoreError, with nothing changed, where it is another's."""

    @abstractmethod
    def require_own(self, state: Mapping[str, Any]) -> None:
        """Raises StoreError where `state` is not one that `load_own_state_dict` can go on from."""

    def state_dict(self) -> dict[str, Any]:
        """The state of what this stands in front of, as torch has it, and in one more entry what this adds."""
        for prepare in self._optimizer_state_dict_pre_hooks.values():
            prepare(self)
        state: dict[str, Any] = {**self.optimizer.state_dict(), OWN: self.own_state_dict()}
        for finish in self._optimizer_state_dict_post_hooks.values():
            state = finish(self, state) or state
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, after the model has been loaded; from what `own_state_dict` gave alone, after both.

        Raises StoreError, with nothing changed, where it is another's, or the state of a bare optimizer.
        """
        state = dict(state_dict)
        for prepare in self._optimizer_load_state_dict_pre_hooks.values():
            state = prepare(self, state) or state
        whole = "param_groups" in state
        if whole and OWN not in state:
            raise StoreError(
                f"the state of an optimizer alone, without {OWN!r}",
                "what state_dict() of this Sparsifier gave",
                "Load it with sparse.optimizer.load_state_dict(), and what own_state_dict() gave with sparse.load_state_dict().",
            )
        own = state.pop(OWN) if whole else state
        self.require_own(own)
        if whole:
            self.optimizer.load_state_dict(state)
        self.load_own_state_dict(own)
        for finish in self._optimizer_load_state_dict_post_hooks.values():
            finish(self)

    def __getstate__(self) -> dict[str, Any]:
        left = {name for name in vars(self) if name.startswith("_optimizer_")} | {"step", "_opt_called"}
        return {name: value for name, value in vars(self).items() if name not in left}


def within(optimizer: Optimizer) -> list[Optimizer]:
    """`optimizer`, and whatever it is wrapped around, however deep: optimizers among its attributes that step what it steps.

    >>> from torch import nn
    >>> from torch.optim import SGD
    >>> sgd = SGD(nn.Linear(3, 2).parameters())
    >>> within(sgd) == [sgd]
    True
    """
    found = [optimizer]
    for outer in found:
        stepped = _stepped(outer)
        for inner in _optimizers_among(vars(outer).values()):
            if not stepped.isdisjoint(_stepped(inner)) and not any(inner is each for each in found):
                found.append(inner)
    return found


def bottom(optimizer: Optimizer) -> list[Optimizer]:
    """Of what is `within` an optimizer, those that are wrapped around nothing: they take the steps."""
    return [each for each in within(optimizer) if len(within(each)) == 1]


def states_of(parameter: Tensor, optimizers: Iterable[Optimizer]) -> Iterator[dict[str, Any]]:
    """What each of `optimizers` holds for `parameter`; once, where one of them shows another's."""
    seen: set[int] = set()
    for optimizer in optimizers:
        state = optimizer.state.get(parameter)
        if state and id(state) not in seen:
            seen.add(id(state))
            yield state


def stray(parameter: Tensor, optimizers: Iterable[Optimizer]) -> str | None:
    """Where one of `optimizers` holds something of the shape of `parameter` beside the state that is kept for it, if anywhere."""
    for optimizer in optimizers:
        if isinstance(optimizer, Wrapper) or parameter.numel() < 2:
            continue  # a single number looks like any other
        held = {name: each for name, each in vars(optimizer).items() if name not in {"state", "param_groups"}}
        held |= {f"state[{key!r}]": each for key, each in optimizer.state.items() if not isinstance(key, Tensor)}
        for name, each in held.items():
            if any(found.shape == parameter.shape and found is not parameter for found in tensors_in(each)):
                return f"{type(optimizer).__name__}.{name}"
    return None


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors within lists, tuples and dicts, however deep.

    >>> [tensor.item() for tensor in tensors_in({"a": [Tensor([1.0]), 2], "b": (Tensor([3.0]),)})]
    [1.0, 3.0]
    """
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple | dict):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_in(each)


def _stepped(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _optimizers_among(values: Iterable[Any]) -> Iterator[Optimizer]:
    for value in values:
        if isinstance(value, Optimizer):
            yield value
        elif isinstance(value, list | tuple | dict):
            several = value.values() if isinstance(value, dict) else value
            yield from (each for each in several if isinstance(each, Optimizer))
