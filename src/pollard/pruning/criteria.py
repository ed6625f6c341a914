"""From a weight to its scores, high = keep: a criterion is a function that states what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from pollard.errors import InvalidInput

NEEDS = ("weight", "gradient", "generator")


class Criterion(Protocol):
    """A function to scores of the shape of `weight`; `needs` names the keyword arguments it is called with.

    `across_layers`: scores mean the same in every layer, so that layers may compete for one budget. Where they do not,
    a budget for all empties whole layers: magnitudes at initialisation follow each layer's fan-in.

    `weight`: the weight `(out, in)`. `gradient`: of the mean loss over the scoring samples, same shape.
    `generator`: the `torch.Generator` all randomness is drawn from.
    """

    __name__: str
    __module__: str
    needs: tuple[str, ...]
    across_layers: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Scores `(out, in)`, one per weight; a grain's score is the sum over its weights."""


CRITERIA: dict[str, Criterion] = {}


def own_allocation(criterion: Criterion) -> str:
    """The allocation that suits `criterion`: global where its scores compare across layers, else erk.

    >>> own_allocation(snip), own_allocation(magnitude)
    ('global', 'erk')
    """
    return "global" if criterion.across_layers else "erk"


def needs(*names: str, across_layers: bool = False) -> Callable[[Callable[..., Tensor]], Criterion]:
    """Declares what a criterion is called with, each of `NEEDS`, and makes it a member of `CRITERIA` under its name.

    Raises InvalidInput for an unknown need, and for a name that a criterion of another module has taken.

    >>> @needs("weight")
    ... def smallest(weight):
    ...     return -weight.abs()
    >>> CRITERIA.pop("smallest").needs
    ('weight',)
    """
    unknown = [name for name in names if name not in NEEDS]
    if unknown:
        raise InvalidInput(
            f"a need for {unknown[0]!r}", "any of " + ", ".join(NEEDS), "Declare only what can be given."
        )

    def declare(function: Callable[..., Tensor]) -> Criterion:
        criterion = cast("Criterion", function)
        criterion.needs, criterion.across_layers = names, across_layers
        taken = CRITERIA.get(criterion.__name__)
        if taken is not None and taken.__module__ != criterion.__module__:
            raise InvalidInput(
                f"a second criterion called {criterion.__name__!r}",
                f"a name other than {', '.join(CRITERIA)}",
                "Rename the function.",
            )
        CRITERIA[criterion.__name__] = criterion
        return criterion

    return declare


@needs("weight")
def magnitude(weight: Tensor) -> Tensor:
    """Score `|w|`.

    >>> magnitude(weight=torch.tensor([[3.0, -4.0]]))
    tensor([[3., 4.]])
    """
    return weight.abs()


@needs("weight", "generator")
def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Score `U(0, 1)`, independent of the weight; float32, so that a coarse weight dtype does not make ties.

    >>> random(weight=torch.zeros(1, 2), generator=torch.Generator().manual_seed(0))
    tensor([[0.4963, 0.7682]])
    """
    return torch.rand(weight.shape, generator=generator, device=generator.device)


@needs("weight", "gradient", across_layers=True)
def snip(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score `|w * dL/dw|`: how fast the loss L changes as the connection is faded out.

    With a gate c on every weight, L(c * w), the derivative `dL/dc` at c = 1 is `w * dL/dw`. The published score is divided
    by its sum over all weights, which changes no ranking and is left out.
    Source: Lee, Ajanthan, Torr, SNIP: single-shot network pruning based on connection sensitivity, ICLR 2019, eq. 5-6.

    >>> snip(weight=torch.tensor([[3.0, -4.0]]), gradient=torch.tensor([[0.5, 0.25]]))
    tensor([[1.5000, 1.0000]])
    """
    return (weight * gradient).abs()
