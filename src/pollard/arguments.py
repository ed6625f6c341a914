"""Arguments that many calls take, checked in one way."""

from __future__ import annotations

from collections.abc import Iterable
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
        near = get_close_matches(str(value).lower(), allowed, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else otherwise or f"Use {allowed[0]!r} if in doubt."
        raise InvalidInput(f"{name} {value!r}", "one of " + ", ".join(filter(None, allowed)), fix)


__all__ = ["require_density", "require_one_of"]
