"""Adam's steps counted for each weight from when it came, by torch's own Adam.

Adam divides its means of gradients and of their squares by `1 - b1^t` and `1 - b2^t`, with one count t of a parameter's steps, since
they began at zero. Those of a newcomer begin at zero when t is large: its first steps are up to `(1 - b1) / sqrt(1 - b2)`, 3.2 times
the learning rate, and those after it larger still. With a count of its own, k, they are those of an optimizer that was made when it came.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from pollard.errors import InvalidInput
from pollard.training.weights import JOINED, Weight
from pollard.training.wrapping import bottom


class OwnSteps:
    """Lets Adam step each of `weights` by a count of its own: `before` every step of the optimizer, and `after`.

    A step moves a weight by `m / C1 / (sqrt(v / C2) + eps)`, with `Ci = 1 - bi^t`. For those of k steps it is to be with
    `ci = 1 - bi^k`. That is what Adam makes of `v' = c v` in place of the new v, with `c = (C2 / c2) (c1 / C1)^2`: so before the
    step the old v becomes what leads there, and after it v' / c is v. c is held at 1, so that no step is larger than Adam's, where
    it is less: for newcomers in the first hundred steps, or for b2 close to b1. eps counts for up to `C1 / c1` times more. The
    state has one number more a kept weight: the steps before it came.

    Raises InvalidInput unless the weights are stepped by Adam or AdamW without amsgrad, in float32 or float64.
    """

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self.weights = weights
        self._scaled: list[tuple[Tensor, Tensor]] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Tensor, Tensor]] = {}
        for weight in weights.values():
            found = [each for each in bottom(weight.optimizer) if _group_of(weight, each) is not None]
            for optimizer in found:
                group = _group_of(weight, optimizer) or {}
                wide = weight.parameter.dtype in {torch.float32, torch.float64}
                if not (isinstance(optimizer, Adam | AdamW) and wide) or group.get("amsgrad"):
                    kind = f"{type(optimizer).__name__}{' with amsgrad' if group.get('amsgrad') else ''}"
                    raise InvalidInput(
                        f"own_steps=True with {kind} on {weight.parameter.dtype} weights of layer {weight.name!r}",
                        "torch's Adam or AdamW, without amsgrad, on weights in float32 or float64",
                        "Use one of these, or leave own_steps= out.",
                    )

    @torch.no_grad()
    def before(self) -> None:
        """The gradients of a step are there."""
        self._scaled = []
        for weight in self.weights.values():
            for optimizer in bottom(weight.optimizer):
                group, state = _group_of(weight, optimizer), optimizer.state.get(weight.parameter)
                gradient = weight.parameter.grad
                if group is not None and state and JOINED in state and gradient is not None:
                    self._scale(state, group, weight.parameter, gradient, decoupled=isinstance(optimizer, AdamW))

    @torch.no_grad()
    def after(self) -> None:
        """The step was taken, or none was."""
        for squares, factor in self._scaled:
            squares.div_(factor)
        self._scaled = []
        for weight in self.weights.values():
            for optimizer in bottom(weight.optimizer):
                state = optimizer.state.get(weight.parameter)
                if state and JOINED not in state:
                    state[JOINED] = torch.zeros_like(weight.parameter)

    def _scale(
        self, state: dict[str, Any], group: dict[str, Any], parameter: Tensor, gradient: Tensor, *, decoupled: bool
    ) -> None:
        first, second = map(float, group["betas"])
        count = float(state["step"]) + 1.0
        births, which = self._births(state[JOINED])
        factors = _factors(births, count, first, second)
        factor = factors.to(parameter.dtype).index_select(0, which).view_as(parameter)
        if group["weight_decay"] and not group.get("decoupled_weight_decay", decoupled):
            gradient = (-gradient if group["maximize"] else gradient) + float(group["weight_decay"]) * parameter
        squares, share = state["exp_avg_sq"], (1.0 - second) / second
        # v' = c v + (c - 1) share g^2 = c (v + share g^2) - share g^2
        extra = gradient.square().mul_(share)
        squares.add_(extra).mul_(factor).sub_(extra)
        self._scaled.append((squares, factor))

    def _births(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """The different numbers in `joined`, float64, and for each of its entries which it is: few, and found anew where it changes."""
        held = self._known.get(id(joined))
        if held is None or held[0]() is not joined or held[1] != joined._version:  # noqa: SLF001  no public name
            counts = joined.detach().flatten().long()
            there = torch.bincount(counts) > 0
            number = there.cumsum(0, dtype=torch.int32) - 1
            found = there.nonzero().view(-1).double(), number.index_select(0, counts)
            self._known = {key: each for key, each in self._known.items() if each[0]() is not None}
            self._known[id(joined)] = held = weakref.ref(joined), joined._version, *found  # noqa: SLF001
        return held[2], held[3]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}}


def _factors(births: Tensor, count: float, first: float, second: float) -> Tensor:
    """c of weights that came after each of `births` steps, at step `count`."""
    age = count - births
    found: Tensor = (
        _one_less(second, count) / _one_less(second, age) * (_one_less(first, age) / _one_less(first, count)).square()
    )
    return found.clamp(min=1.0)


def _one_less(beta: float, age: Any) -> Any:
    """`1 - beta^age`."""
    return 1.0 - beta**age


def _group_of(weight: Weight, optimizer: Any) -> dict[str, Any] | None:
    """The group in which `optimizer` steps `weight`."""
    groups = (group for group in optimizer.param_groups if any(each is weight.parameter for each in group["params"]))
    return next(groups, None)
