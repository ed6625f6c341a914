"""An initial weight as what was drawn, and what was done to it since, so that any rows of it can be made again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from pollard.errors import InvalidInput
from pollard.streamed.source import Source
from pollard.streams import Stream

aten = torch.ops.aten
# An operator by name, since it can be neither copied nor pickled, and what it was called with.
Step = tuple[str, tuple[Any, ...], Mapping[str, Any]]
# What begins anew, whatever was there.
DRAWS = {aten.uniform_.default, aten.normal_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default}
# What changes each number by itself, in place.
STEPS = {
    aten.abs_.default, aten.add_.Scalar, aten.add_.Tensor, aten.clamp_.default, aten.clamp_max_.default, aten.clamp_min_.default,
    aten.div_.Scalar, aten.div_.Tensor, aten.erfinv_.default, aten.exp_.default, aten.log_.default, aten.mul_.Scalar, aten.mul_.Tensor,
    aten.neg_.default, aten.pow_.Scalar, aten.sqrt_.default, aten.sub_.Scalar, aten.sub_.Tensor, aten.tanh_.default,
}  # fmt: skip

_TRUNCATED = init._no_grad_trunc_normal_.__code__
_STEPS = {str(step): step for step in STEPS}


class Drawn(Source):
    """Numbers of `stream`, by row and column, as the last of `steps` that draws says, and what comes after it, in order."""

    def __init__(
        self, stream: Stream, shape: tuple[int, int], dtype: torch.dtype, steps: tuple[Step, ...] = ()
    ) -> None:
        self.stream, self.shape, self.dtype, self.steps = stream, shape, dtype, steps

    def note(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """From now on, `function` is done too, in place, to all numbers or to the rows that are asked for."""
        step = (str(function), args, dict(kwargs))
        self.steps = (step,) if function in DRAWS else (*self._begun(), step)

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows, drawn and changed."""
        columns = self.shape[1]
        return self._made(
            (last - first, columns),
            lambda low, high: self.stream.uniform(first, last, columns, low, high),
            lambda mean, std: self.stream.normal(first, last, columns, mean, std),
        )

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The numbers at these places, int64 `(n,)` each, drawn and changed."""
        return self._made(
            (len(rows),),
            lambda low, high: self.stream.uniform_at(rows, columns, low, high),
            lambda mean, std: self.stream.normal_at(rows, columns, mean, std),
        )

    def become(self, other: Drawn) -> None:
        """From now on, the numbers of `other`, which has this one's shape and dtype."""
        self.stream, self.steps = other.stream, other.steps

    def copied(self, dtype: torch.dtype | None = None) -> Drawn:
        """The same numbers, to which other things may be done; in another dtype, rounded at the end."""
        return Drawn(self.stream, self.shape, dtype or self.dtype, self.steps)

    def _begun(self) -> tuple[Step, ...]:
        if not self.steps:
            raise InvalidInput(
                "a weight that was made and never initialised",
                "numbers drawn by normal_, uniform_ or an initialiser of torch.nn.init",
                "Initialise it within pollard.never_dense.",
            )
        return self.steps

    def _made(
        self,
        shape: tuple[int, ...],
        uniform: Callable[[float, float], Tensor],
        normal: Callable[[float, float], Tensor],
    ) -> Tensor:
        (draw, args, kwargs), *steps = self._begun()
        if draw == str(aten.uniform_.default):
            made = uniform(*_filled(args, kwargs, {"from": 0.0, "to": 1.0}))
        elif draw == str(aten.normal_.default):
            made = normal(*_filled(args, kwargs, {"mean": 0.0, "std": 1.0}))
        else:
            made = torch.full(shape, float(args[0]) if args else 0.0, dtype=torch.float32, device="cpu")
        for name, others, named in steps:
            _STEPS[name](made, *others, **named)
        return made if made.dtype == self.dtype else made.to(self.dtype)

    def __repr__(self) -> str:
        told = ", ".join(name.split(".")[1] for name, _, _ in self.steps)
        return f"{self.stream}, {told or 'not initialised'}"


def truncation(frame: FrameType) -> tuple[float, float, float, float] | None:
    """The mean, the standard deviation and the bounds that torch's initialiser of truncated normal numbers was called with, where
    it is what runs in `frame`.
    """
    if frame.f_code is not _TRUNCATED:
        return None
    mean, std, low, high = (float(frame.f_locals[name]) for name in ("mean", "std", "a", "b"))
    return mean, std, low, high


def note_truncated(weight: Tensor, mean: float, std: float, low: float, high: float) -> None:
    """`weight` becomes N(mean, std**2) cut at `low` and `high`, each number by the inverse of the distribution function."""
    ends = [math.erf((bound - mean) / (std * math.sqrt(2.0))) for bound in (low, high)]
    weight.detach().uniform_(*ends).erfinv_().mul_(std * math.sqrt(2.0)).add_(mean).clamp_(low, high)


def _filled(args: tuple[Any, ...], kwargs: Mapping[str, Any], defaults: Mapping[str, float]) -> list[float]:
    found = dict(defaults) | dict(zip(defaults, args, strict=False)) | dict(kwargs)
    return [float(found[name]) for name in defaults]


__all__ = ["DRAWS", "STEPS", "Drawn", "note_truncated", "truncation"]
