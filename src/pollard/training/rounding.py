"""Stochastic rounding: weights and optimizer state held in bfloat16, stepped in float32, no update lost on average.

bfloat16 has 8 significant bits: an update below 1/512 of a weight is rounded away each time, and so is weight decay. Rounded up or
down at random, in proportion to how near each is, the weight is the exact one on average.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

from pollard.errors import InvalidInput
from pollard.streams.rounding import round_stochastically
from pollard.training.randomness import stream

# The entry of a group that counts its steps: torch keeps groups in state_dict().
COUNT = "roundings"
# Numbers that are stepped at once: small parameters each by itself would cost more in calls than in work, and of large ones
# all float32 copies would be held.
TOGETHER = 1 << 18
# Those whose step of a number looks at no other number. Others, Adafactor say, are given whole parameters.
BY_NUMBER = {ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop}


class StochasticRounding(Optimizer):
    """A torch optimizer that takes the steps of `optimizer` in float32 and rounds bfloat16 parameters and state at random.

    It takes over the groups and the state of `optimizer`, which is not to be stepped any more. Float32 copies are held of 262,144
    numbers at a time; of a whole parameter where `optimizer` is none of torch's whose step of a number looks at no other. Random
    bits are a function of `seed`, the number of the step, and the place of a number among those that have a gradient: a resumed
    run rounds as the whole one would have, and so does every process. Parameters of other dtypes are stepped as `optimizer`
    steps them.

    Raises InvalidInput for LBFGS, which steps all parameters together.

    >>> weight = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    >>> optimizer = StochasticRounding(torch.optim.SGD([weight], lr=1e-4))
    >>> for _ in range(100):
    ...     weight.grad = torch.ones_like(weight)
    ...     optimizer.step()
    >>> round(weight.float().mean().item(), 3)  # rounded to nearest, it would still be 1
    0.99
    """

    def __init__(self, optimizer: Optimizer, seed: int = 0) -> None:
        if isinstance(optimizer, LBFGS):
            raise InvalidInput(
                "LBFGS, whose step is of all parameters together",
                "an optimizer that steps each parameter by itself",
                "Use SGD, Adam, AdamW, RMSprop, Adagrad or another of these.",
            )
        self.seed = seed
        # Without groups of its own, nobody takes it for what steps the parameters.
        self.inner = _without_parameters(optimizer)
        super().__init__(optimizer.param_groups, {**optimizer.defaults, COUNT: 0})
        self.state.update(optimizer.state)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "seed": self.seed, "inner": self.inner}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            group[COUNT] += 1
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            for place, some in enumerate(_together(moving)):
                purpose = f"step {group[COUNT]} of parameters {number}.{place}"
                if self._in_parts(some[0]):
                    self._step_in_parts(some[0], group, purpose)
                    continue
                states = self._stepped(some, [self.state[each] for each in some], group, purpose)
                self.state.update(zip(some, states, strict=True))
        return loss

    def _in_parts(self, parameter: Tensor) -> bool:
        """Whether it is too large to be held in float32 as a whole, and need not be."""
        if parameter.numel() <= TOGETHER or parameter.dtype is not torch.bfloat16 or type(self.inner) not in BY_NUMBER:
            return False
        whole = [parameter, parameter.grad, *(e for e in self.state[parameter].values() if _is_of(e, parameter))]
        return all(each is not None and each.is_contiguous() for each in whole)

    def _step_in_parts(self, parameter: Tensor, group: dict[str, Any], purpose: str) -> None:
        """One step of `parameter`, some numbers at a time. Each part finds the state that the step before has left."""
        assert parameter.grad is not None
        old, new = self.state[parameter], {}
        for first in range(0, parameter.numel(), TOGETHER):
            part = slice(first, first + TOGETHER)
            numbers = parameter.detach().view(-1)[part]
            numbers.grad = parameter.grad.view(-1)[part]
            state = {key: _part(entry, parameter, part) for key, entry in old.items()}
            [found] = self._stepped([numbers], [state], group, f"{purpose}, from {first}")
            for key, entry in found.items():
                if not _is_of(entry, numbers):
                    new[key] = entry
                    continue
                if key not in new:
                    new[key] = old[key] if key in old else torch.empty_like(parameter, dtype=entry.dtype)
                new[key].view(-1)[part] = entry
        self.state[parameter] = new

    def _stepped(
        self, parameters: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any], purpose: str
    ) -> list[dict[str, Any]]:
        """The states after one step of `parameters`, which are of one dtype and on one device."""
        wide = [_widened(parameter.detach()) for parameter in parameters]
        for parameter, own in zip(parameters, wide, strict=True):
            assert parameter.grad is not None
            own.grad = parameter.grad.to(own.dtype)
        copies = [{key: _widened(entry) for key, entry in state.items()} for state in states]
        self.inner.param_groups = [{**group, "params": wide}]
        self.inner.state = defaultdict(dict, zip(wide, copies, strict=True))
        try:
            self.inner.step()
            found = [self.inner.state[own] for own in wide]
        finally:
            self.inner.param_groups, self.inner.state = [], defaultdict(dict)
        if parameters[0].dtype is torch.bfloat16:
            self._narrow(found, purpose)
            for parameter, rounded in zip(parameters, self._rounded(wide, purpose), strict=True):
                parameter.copy_(rounded)
        return found

    def _narrow(self, states: list[dict[str, Any]], purpose: str) -> None:
        """Round what is of float32 in `states`, in place, but single numbers: steps are counted in them."""
        for key in dict.fromkeys(key for state in states for key in state):
            own = [state for state in states if _is_wide(state.get(key))]
            for state, rounded in zip(
                own, self._rounded([each[key] for each in own], f"{purpose}, {key}"), strict=True
            ):
                # A part of a larger tensor would keep all of it, in copies and files too.
                state[key] = rounded if len(own) == 1 else rounded.clone()

    def _rounded(self, exact: list[Tensor], purpose: str) -> list[Tensor]:
        """Each of `exact` in bfloat16, by a stream of random bits of its own."""
        if not exact:
            return []
        seed = stream(self.seed, f"rounding, {purpose}")
        if len(exact) == 1:
            return [round_stochastically(exact[0], seed)]
        parts = round_stochastically(torch.cat([each.reshape(-1) for each in exact]), seed)
        return [
            part.view(each.shape) for part, each in zip(parts.split([e.numel() for e in exact]), exact, strict=True)
        ]


def _together(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours that are stepped at once: of one dtype and device, of so many numbers at most; a larger one alone."""
    some: list[Tensor] = []
    count = 0
    for parameter in parameters:
        alike = not some or (parameter.dtype, parameter.device) == (some[0].dtype, some[0].device)
        if some and not (alike and count + parameter.numel() <= TOGETHER):
            yield some
            some, count = [], 0
        some.append(parameter)
        count += parameter.numel()
    if some:
        yield some


def _widened(entry: Any) -> Any:
    return entry.float() if isinstance(entry, Tensor) and entry.dtype is torch.bfloat16 else entry


def _is_wide(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.dtype is torch.float32 and entry.dim() > 0


def _is_of(entry: Any, numbers: Tensor) -> bool:
    return isinstance(entry, Tensor) and entry.shape == numbers.shape


def _part(entry: Any, parameter: Tensor, part: slice) -> Any:
    if _is_of(entry, parameter):
        return entry.view(-1)[part]
    # A count, which every part moves on from where it was.
    return entry.clone() if isinstance(entry, Tensor) else entry


def _without_parameters(optimizer: Optimizer) -> Optimizer:
    """A copy of `optimizer` with nothing to step, nor hooks, nor what a scheduler has put in the place of `step`."""
    made = object.__new__(type(optimizer))
    left = {name for name in vars(optimizer) if name.startswith("_optimizer_")} | {"step", "_opt_called"}
    vars(made).update({name: value for name, value in vars(optimizer).items() if name not in left})
    made.param_groups, made.state = [], defaultdict(dict)
    # This is how torch completes an unpickled one.
    Optimizer.__setstate__(made, {})
    return made
