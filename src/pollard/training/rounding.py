"""Stochastic rounding: weights and optimizer state held in bfloat16, stepped in float32, no update lost on average.

bfloat16 has 8 significant bits: an update below 1/512 of a weight is rounded away each time, and so is weight decay. Rounded up or
down at random, in proportion to how near each is, the weight is the exact one on average.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from pollard.errors import InvalidInput
from pollard.training.randomness import stream

# The entry of a group that counts its steps: torch keeps groups in state_dict().
COUNT = "roundings"
# Bounds what rounding holds besides its result, whatever the size of the parameter.
AT_ONCE = 1 << 20


class StochasticRounding(Optimizer):
    """A torch optimizer that takes the steps of `optimizer` in float32 and rounds bfloat16 parameters and state at random.

    It takes over the groups and the state of `optimizer`, which is not to be stepped any more. Parameters are stepped one by
    one, so that float32 copies of a single one are held at a time. Random bits are a function of `seed`, the number of
    the step, and the place of parameter and number: a resumed run rounds as the whole one would have, and so does every process.
    Parameters of other dtypes are stepped as `optimizer` steps them.

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
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._step_alone(parameter, group, f"step {group[COUNT]} of parameter {number}.{place}")
        return loss

    def _step_alone(self, parameter: Tensor, group: dict[str, Any], purpose: str) -> None:
        wide = parameter.detach()
        if parameter.dtype is torch.bfloat16:
            wide = wide.float()
        assert parameter.grad is not None
        wide.grad = parameter.grad.to(wide.dtype)
        self.inner.param_groups = [{**group, "params": [wide]}]
        self.inner.state = defaultdict(dict, {wide: {key: _widened(e) for key, e in self.state[parameter].items()}})
        try:
            self.inner.step()
            found = self.inner.state[wide]
        finally:
            self.inner.param_groups, self.inner.state = [], defaultdict(dict)
        if wide.dtype is parameter.dtype:
            self.state[parameter] = found
            return
        for key, entry in found.items():
            self.state[parameter][key] = self._narrowed(entry, f"{purpose}, {key}")
        parameter.copy_(self._narrowed(wide, purpose))

    def _narrowed(self, entry: Any, purpose: str) -> Any:
        if not isinstance(entry, Tensor) or entry.dtype is not torch.float32 or entry.dim() == 0:
            return entry
        draw = torch.Generator(entry.device).manual_seed(stream(self.seed, f"rounding, {purpose}"))
        return round_stochastically(entry, draw)


def round_stochastically(x: Tensor, draw: torch.Generator) -> Tensor:
    """Float32 `x` in bfloat16, each number one of its two neighbours there, the nearer the likelier; its mean is `x`.

    What bfloat16 holds stays as it is, infinite numbers too, and NaN stays NaN.

    >>> x = torch.full((10000,), 1 + 2**-9)  # a quarter of the way from 1 to the next
    >>> found = round_stochastically(x, torch.Generator().manual_seed(0))
    >>> found.unique().tolist(), round((found > 1).float().mean().item(), 2)
    ([1.0, 1.0078125], 0.25)
    """
    rounded = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    parts = zip(x.contiguous().view(-1).split(AT_ONCE), rounded.view(-1).split(AT_ONCE), strict=True)
    for exact, target in parts:
        # bfloat16 is the upper half of float32: a random lower half carries into it as often as what is cut off is large.
        words = torch.empty((len(exact) + 3) // 4, dtype=torch.int64, device=x.device)
        bits = words.random_(-(2**63), None, generator=draw).view(torch.int16)[: len(exact)].int().bitwise_and_(0xFFFF)
        bits += exact.view(torch.int32)
        target.view(torch.int16).copy_(bits.bitwise_right_shift_(16))
        # The carry could make another number of it.
        target.masked_fill_(exact.isnan(), torch.nan)
    return rounded


def _widened(entry: Any) -> Any:
    return entry.float() if isinstance(entry, Tensor) and entry.dtype is torch.bfloat16 else entry


def _without_parameters(optimizer: Optimizer) -> Optimizer:
    """A copy of `optimizer` with nothing to step, nor hooks, nor what a scheduler has put in the place of `step`."""
    made = object.__new__(type(optimizer))
    left = {name for name in vars(optimizer) if name.startswith("_optimizer_")} | {"step", "_opt_called"}
    vars(made).update({name: value for name, value in vars(optimizer).items() if name not in left})
    made.param_groups, made.state = [], defaultdict(dict)
    # This is how torch completes an unpickled one.
    Optimizer.__setstate__(made, {})
    return made
