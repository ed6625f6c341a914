"""How a network is measured for scores, as a frozen value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, get_args

from torch import Tensor, nn

from pollard.errors import InvalidInput

# Inputs and targets: tensors, or tuples, lists or dicts of them; or one dict with both, by the model's own names.
Pair = tuple[Any, Any]
Batch = Pair | Mapping[str, Any]
Batches = Batch | Iterable[Batch]
Mode = Literal["eval", "train"]
Accumulate = Literal["signed", "absolute"]
RoundSchedule = Literal["exponential", "linear"]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the network is evaluated, and its loss taken, while a criterion looks at it.

    loss_fn: `(outputs, targets) -> scalar`, the mean over the samples, weighted or not; None is cross-entropy, or, for a
    batch that is a dict, the `loss` that the model gives. Outputs and targets are what the model gives and the batch holds:
    tensors, tuples, dicts.
    forward: `(model, inputs) -> outputs`, for a model that is called in another way than training calls it by default.
    mode: what batch norm and dropout do meanwhile. `eval`, as the authors of SNIP, or `train`, as most later code; None is the
    criterion's own.
    accumulate: over several batches, average the gradients (`signed`: the gradient of one big batch) or their magnitudes
    (`absolute`: Frankle et al., Pruning neural networks at initialization, ICLR 2021).
    chunk_size: samples that pass the network at once. It bounds memory and, but for batch norm in `train` mode and
    floating-point rounding, changes nothing. None passes a batch whole. A loss that is not known to be a plain mean (class
    weights, targets that are ignored, a function of your own) is taken of all outputs of a batch, which are held for it,
    and the network is passed a second time.
    temperature: outputs are divided by it before the loss; GraSP uses 200. None is the criterion's own.

    >>> Scoring(chunk_size=64, mode="train").chunk_size
    64

    Raises InvalidInput for an unknown mode or accumulate, a chunk size below 1, or a temperature that is not above 0.
    """

    loss_fn: Callable[[Any, Any], Tensor] | None = None
    mode: Mode | None = None
    accumulate: Accumulate = "signed"
    chunk_size: int | None = None
    temperature: float | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, get_args(Mode)),
            ("accumulate", self.accumulate, get_args(Accumulate)),
        ):
            if value is not None and value not in allowed:
                raise InvalidInput(
                    f"{name}={value!r}", "one of " + ", ".join(allowed), f"Leave {name}= out for {allowed[0]!r}."
                )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise InvalidInput(
                f"chunk_size={self.chunk_size}", "at least 1 sample", "Leave chunk_size= out to take batches whole."
            )
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise InvalidInput(
                f"temperature={self.temperature}", "a number above 0", "Leave temperature= out for the criterion's own."
            )


@dataclass(frozen=True, slots=True)
class Rounds:
    """Score `count` times, each time the network that the round before has left.

    Round k of n keeps ``density ** (k / n)``, or with `schedule` "linear" a straight line's. recover: what one round drops may come
    back. None is the criterion's own, published choice. resume: a file in which each round's result is kept until the plan is made: a
    call that was stopped, made again with the same arguments, goes on after the last round that it finished.
    """

    count: int | None = None
    recover: bool | None = None
    schedule: RoundSchedule = "exponential"
    resume: str | PathLike[str] | None = None
