"""What a measurement is: a function of a network to one tensor for each of its prunable layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

from torch import Tensor

from pollard.arguments import require_untaken
from pollard.pruning.network import Network

Measurement = Callable[[Network], dict[str, Tensor]]
# Of so many samples and outputs of the network, in examples of dense training: a forward pass and both gradients.
Cost = Callable[[int, int], float]
MEASUREMENTS: dict[str, Measurement] = {}
COSTS: dict[str, Cost] = {}


@overload
def measurement(function: Measurement) -> Measurement: ...
@overload
def measurement(*, cost: Cost) -> Callable[[Measurement], Measurement]: ...
def measurement(
    function: Measurement | None = None, *, cost: Cost | None = None
) -> Measurement | Callable[[Measurement], Measurement]:
    """Makes `function` a member of `MEASUREMENTS` under its name, by which criteria declare that they need it.

    cost: what it takes for n scoring samples and k outputs of the network, as `cost(n, k)` examples of dense training, three
    multiply-adds a weight each; of passes through the network alone. A measurement without one leaves the budget of a run unknown.
    It is called inside `network.undisturbed()`, once a round. Raises InvalidInput for a name that a measurement of another
    module has taken.
    """

    def join(function: Measurement) -> Measurement:
        name = function.__name__
        require_untaken("measurement", name, function, MEASUREMENTS)
        MEASUREMENTS[name] = function
        if cost is not None:
            COSTS[name] = cost
        return function

    return join if function is None else join(function)
