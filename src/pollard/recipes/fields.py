"""Fields of a recipe as files and callers give them: read, of the right kind, one of the values that there are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pollard.errors import InvalidInput, StoreError
from pollard.reading import read_json, read_toml

LARGEST = 2**53  # of whole numbers that are floats too

Value = str | int | float | bool


def read_fields(path: Path) -> dict[str, Any]:
    """The fields that a recipe's ``.toml`` or ``.json`` file gives; raises InvalidInput when it cannot be read."""
    told = "a recipe as TOML or JSON", "Recipe().to_toml() prints one to start from."
    try:
        values = read_toml(path, *told) if path.suffix == ".toml" else read_json(path, *told)
    except StoreError as error:
        raise InvalidInput(error.got, error.expected, error.fix) from error
    if not isinstance(values, dict):
        raise InvalidInput(
            f"{path} that holds a {type(values).__name__}", "a table of recipe fields", "See Recipe().to_toml()."
        )
    return values


def typed(name: str, value: object, kind: type) -> Value:
    """`value` as the field `name` of this `kind` holds it; raises InvalidInput where it is something else."""
    if kind is float and type(value) is int and abs(value) <= LARGEST:
        return float(value)
    if type(value) is not kind:
        raise InvalidInput(f"{name}={value!r}", f"{_ARTICLES[kind]}", f"Give {name} as {_ARTICLES[kind]}.")
    assert isinstance(value, (str, int, float, bool))
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"{name} {value}", "a number that is finite", f"Leave {name} out for the default.")
    return value


_ARTICLES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
