"""Which calls for a step are steps: an optimizer that is wrapped in another may be skipped, and may be stepped past the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pollard.errors import InvalidInput
from pollard.kernels.products.waiting import is_captured
from pollard.training.wrapping import bottom, within


class Steps:
    """Notices the steps that are really taken: by the optimizers at the bottom of `optimizer`, whoever asked for them.

    A wrapper may skip a step, as under gradient accumulation or where a gradient overflowed. alone: called at each that
    nobody announced with `taking`.
    """

    def __init__(self, optimizer: Optimizer, alone: Callable[[], None]) -> None:
        self.optimizer, self.alone = optimizer, alone
        self.wrapped = len(within(optimizer)) > 1
        self._prepare: Callable[[], None] | None = None
        self._instead = self._taken = False
        self._stowed: list[tuple[Tensor, Tensor]] = []
        for each in bottom(optimizer):
            if not getattr(type(each).step, "hooked", False):
                Optimizer.__setstate__(each, {})  # it was not made by torch's constructor, and has no hooks yet
            each.register_step_pre_hook(self._before)
            each.register_step_post_hook(self._give_back)

    def taking(self, call: Callable[[], Any], prepare: Callable[[], None], *, instead: bool) -> tuple[Any, bool]:
        """What `call` returned, and whether a step was taken in it: `prepare` was called before, once gradients were there.

        instead: have the optimizer find no gradients, so that it goes through its step and moves nothing.
        """
        self._prepare, self._instead, self._taken = prepare, instead, False
        try:
            return call(), self._taken
        finally:
            self._prepare = None
            self._give_back()

    def _before(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._prepare is None:
            self.alone()
            return None
        own, *given = args
        closure = kwargs.get("closure", given[0] if given else None)
        if closure is None:
            if not self._taken:
                self._begin()
            return None

        def evaluate() -> Any:
            loss = closure()
            self._begin()
            return loss

        rest = {name: each for name, each in kwargs.items() if name != "closure"}
        return (own, evaluate, *given[1:]), rest

    def _begin(self) -> None:
        if self._prepare is not None:
            self._prepare()
        self._taken = True
        if self._instead:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._stowed.append((parameter, parameter.grad))
                        parameter.grad = None

    def _give_back(self, *_: object) -> None:
        while self._stowed:
            parameter, gradient = self._stowed.pop()
            parameter.grad = gradient


def refuse_capture(method: str) -> None:
    """Raises InvalidInput where a CUDA graph is captured: its replays would take steps that nobody counts, and move nothing."""
    if is_captured():
        raise InvalidInput(
            f"a step of {method} captured in a CUDA graph",
            "a step that Python takes, which moves the topology when it is time",
            "Capture forward and backward only, and call step() after each replay; capture them anew whenever sparse.updates has "
            "changed. Or capture the step of pollard.static(...), whose topology stays.",
        )
