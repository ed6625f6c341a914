"""From a recipe's fields to the method that moves its topology."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pollard.arguments import require_density
from pollard.errors import InvalidInput
from pollard.training.methods import METHODS
from pollard.training.methods.method import Method, options_of, require_options


class Span(NamedTuple):
    """How long a network trains: steps in all, and steps of an epoch."""

    steps: int
    epoch: int


def moving_method(
    name: str, density: float, span: Span, given: Mapping[str, Any], options: str = "", *, allocation: str = ""
) -> Method:
    """The member `name` of `METHODS` over `span`.

    given: options by name; those that are 0 or empty are the method's own. options: more of them as text, `a=1,b=true`.
    allocation: how a density that moves is shared out, for a method that has the choice.
    Raises InvalidInput for an option that the method does not have, or a value that it cannot use.

    >>> moving_method("set", 0.1, Span(1000, 100), {"fraction": 0.2, "every": 0}, "signed=false").every
    100
    """
    require_density(density)
    builder = METHODS[name]
    known = options_of(builder)
    chosen: dict[str, Any] = {option: value for option, value in given.items() if value}
    chosen |= {
        option: text for option, _, text in (part.strip().partition("=") for part in options.split(",")) if option
    }
    require_options(name, chosen, (each for each in known if each != "epoch"))
    values = {option: _value(option, value, known[option]) for option, value in chosen.items()}
    if allocation and "allocation" in known:
        values.setdefault("allocation", allocation)
    return builder(density, span.steps, **values, **({"epoch": span.epoch} if "epoch" in known else {}))


def _value(option: str, value: Any, default: Any) -> Any:
    """`value`, read as what `default` is where it is text."""
    if not isinstance(value, str) or isinstance(default, str):
        return value
    kind = type(default)
    try:
        read = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        read = None
    if read is None or not math.isfinite(read):
        raise InvalidInput(
            f"{option}={value!r}", f"a value like {str(default).lower()}", "Write options as name=value,name=value."
        )
    return read
