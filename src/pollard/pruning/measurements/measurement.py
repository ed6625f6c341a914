"""What a measurement is: a function of a network to one tensor for each of its prunable layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pollard.errors import InvalidInput
from pollard.pruning.network import Network

Measurement = Callable[[Network], dict[str, Tensor]]
MEASUREMENTS: dict[str, Measurement] = {}


def measurement(function: Measurement) -> Measurement:
    """Makes `function` a member of `MEASUREMENTS` under its name, by which criteria declare that they need it.

    It is called inside `network.undisturbed()`, once a round. Raises InvalidInput for a name that a measurement of another
    module has taken.
    """
    name = function.__name__
    taken = MEASUREMENTS.get(name)
    if taken is not None and taken.__module__ != function.__module__:
        raise InvalidInput(
            f"a second measurement called {name!r}",
            f"a name other than {', '.join(MEASUREMENTS)}",
            "Rename the function.",
        )
    MEASUREMENTS[name] = function
    return function
