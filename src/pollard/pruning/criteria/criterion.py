"""What a criterion is: a function from a weight and what it needs to scores, and how to ask it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from torch import Tensor

from pollard.arguments import require_untaken
from pollard.errors import InvalidInput
from pollard.pruning.measurements import MEASUREMENTS
from pollard.pruning.scoring import Mode

OWN_NEEDS = ("weight", "generator")


# (weight, count, pattern, allowed, **needs) to the positions of the `count` grains to keep, ascending, and the new weight
# `(out, in)`, which is read where it is kept. allowed: bool, a grain each `(groups, in)`: what an earlier pruning has left,
# never fewer than `count`; the weight is zero elsewhere.
Solve = Callable[..., tuple[Tensor, Tensor]]


class Criterion(Protocol):
    """A function to scores of the shape of `weight`, with what else must be known to ask it; made by `criterion`.

    needs: the keyword arguments it is called with: `weight`, the original weight `(out, in)`; `generator`, which all
    randomness is drawn from; or the name of a measurement, which gives one tensor a layer.
    across_layers: scores mean the same in every layer, so that layers may compete for one budget. Where they do not, a
    budget for all empties whole layers: magnitudes at initialisation follow each layer's fan-in.
    allocation: how the budget is shared out where they do not, unless told otherwise.
    rounds: how often it is published to score, each time what the round before has kept. recover: whether what one
    round drops may come back in the next. mode, temperature: of the network while it is measured. per_class: examples of
    each class that it is published to score on, 0 for a batch as it comes; who calls `prune` brings the batch.
    by_row: whether scores of some rows ask for no more than those rows of what it needs, so that a weight which is a stream of
    numbers can be scored. cite: the key of its source in `CITATIONS`. solve: for a criterion that changes the weights it keeps.
    """

    __name__: str
    __module__: str
    __doc__: str | None
    name: str
    needs: tuple[str, ...]
    across_layers: bool
    allocation: str
    rounds: int
    recover: bool
    mode: Mode
    temperature: float
    per_class: int
    cite: str
    by_row: bool
    solve: Solve | None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Scores `(out, in)`, one per weight; a grain's score is the sum over its weights."""

    def solved_by(self, solve: Solve) -> Solve:
        """Makes `solve` choose and change the weights, once this criterion's scores have shared out the budget."""


CRITERIA: dict[str, Criterion] = {}


def own_allocation(criterion: Criterion) -> str:
    """The allocation that suits `criterion`: global where its scores compare across layers, else what it declares.

    >>> from pollard.pruning.criteria import CRITERIA
    >>> [own_allocation(CRITERIA[name]) for name in ("snip", "magnitude", "wanda")]
    ['global', 'erk', 'uniform']
    """
    return "global" if criterion.across_layers else criterion.allocation


def criterion(
    *,
    needs: tuple[str, ...],
    across_layers: bool = False,
    allocation: str = "erk",
    rounds: int = 1,
    recover: bool = False,
    mode: Mode = "eval",
    temperature: float = 1.0,
    per_class: int = 0,
    cite: str = "",
    by_row: bool = False,
) -> Callable[[Callable[..., Tensor]], Criterion]:
    """Declares how a criterion is asked, and makes it a member of `CRITERIA`: `grasp_abs` joins as `grasp-abs`.

    Raises InvalidInput for an unknown need, and for a name that a criterion of another module has taken.

    >>> @criterion(needs=("weight",))
    ... def smallest(weight):
    ...     return -weight.abs()
    >>> CRITERIA.pop("smallest").needs
    ('weight',)
    """
    known = (*OWN_NEEDS, *MEASUREMENTS)
    if unknown := [need for need in needs if need not in known]:
        raise InvalidInput(
            f"a need for {unknown[0]!r}",
            "any of " + ", ".join(known),
            "Declare only what can be given, or add a measurement.",
        )

    def declare(function: Callable[..., Tensor]) -> Criterion:
        member = cast("Criterion", function)
        member.name = function.__name__.replace("_", "-")
        member.needs, member.across_layers, member.cite = needs, across_layers, cite
        member.rounds, member.recover, member.mode, member.temperature = rounds, recover, mode, temperature
        member.allocation, member.per_class, member.by_row = allocation, per_class, by_row
        member.solve = None

        def solved_by(solve: Solve) -> Solve:
            member.solve = solve
            return solve

        member.solved_by = solved_by  # type: ignore[method-assign]  # an attribute of the function
        require_untaken("criterion", member.name, member, CRITERIA)
        CRITERIA[member.name] = member
        return member

    return declare
