"""What many calls are given, checked in one way: densities, names of members, and names for new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any

from pollard.errors import InvalidInput


def require_density(density: Any) -> None:
    """Raises InvalidInput unless `density` is a number in (0, 1]."""
    if not isinstance(density, Real) or not 0 < float(density) <= 1:
        raise InvalidInput(
            f"density {density!r}", "a density in (0, 1]", "Density is the fraction kept: 95 % sparsity is 0.05."
        )


def require_one_of(name: str, value: Any, allowed: Iterable[str], otherwise: str = "") -> None:
    """Raises InvalidInput, naming the nearest, unless the `value` of argument `name` is among those that are `allowed`.

    otherwise: the next step where none is near, by default the first of them.
    """
    allowed = list(allowed)
    if value not in allowed:
        fix = nearest(str(value).lower(), allowed) or otherwise or f"Use {allowed[0]!r} if in doubt."
        raise InvalidInput(f"{name} {value!r}", "one of " + ", ".join(filter(None, allowed)), fix)


def nearest(given: str, known: Iterable[str]) -> str:
    """The question whether the nearest of what is `known` was meant; nothing where none is near.

    >>> nearest("rigle", ["set", "rigl"])
    "Did you mean 'rigl'?"
    """
    near = get_close_matches(given, list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def require_untaken(
    kind: str, name: str, function: Callable[..., Any], members: Mapping[str, Callable[..., Any]]
) -> None:
    """Raises InvalidInput where a function of another module is the member `name` already."""
    taken = members.get(name)
    if taken is not None and taken.__module__ != function.__module__:
        raise InvalidInput(
            f"a second {kind} called {name!r}", f"a name other than {', '.join(members)}", "Rename the function."
        )


__all__ = ["nearest", "require_density", "require_one_of", "require_untaken"]
