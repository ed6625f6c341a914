"""Text of unknown origin, read in one way: JSON and TOML of bounded size and depth, or a StoreError."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pollard.errors import StoreError

STATUS, MEMORY = (
    Path("/proc/self/status"),
    Path("/proc/meminfo"),
)  # where Linux tells of this process, and of the machine
LARGEST = 1 << 26  # bytes of a text file: forty thousand runs in a ledger, a hundred thousand epochs of metrics
DEEPEST = 100  # dicts and lists within each other; what Python itself takes depends on who calls


def told_bytes(file: Path, key: str) -> int | None:
    """What Linux tells under `key`, in STATUS or MEMORY, in bytes; None where nothing is told."""
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, rest = line.partition(":")
        if name == key:
            return int(rest.split()[0]) << 10
    return None


def read_bytes(path: str | PathLike[str], expected: str, fix: str) -> bytes:
    """The content of a file of at most `LARGEST` bytes; raises StoreError where there is no such file.

    expected, fix: what the error says.

    >>> Path("note").write_bytes(b"kept")
    4
    >>> read_bytes("note", "a note", "Write one.")
    b'kept'
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        raise StoreError(f"{path}: {_reason(error)}", expected, fix) from error
    if len(content) > LARGEST:
        raise StoreError(f"{path} with more than {LARGEST:,} bytes", expected, fix)
    return content


def read_json(path: str | PathLike[str], expected: str, fix: str) -> Any:
    """The JSON value in a file; raises StoreError where it cannot be read, is no JSON, or nested too deeply."""
    return parse_json(read_bytes(path, expected, fix), str(path), expected, fix)


def read_toml(path: str | PathLike[str], expected: str, fix: str) -> dict[str, Any]:
    """The tables in a TOML file; raises StoreError as `read_json` does."""
    table: dict[str, Any] = _parsed(tomllib.loads, read_bytes(path, expected, fix), str(path), expected, fix)
    return table


def parse_json(content: bytes | str, where: str, expected: str, fix: str) -> Any:
    """The JSON value in `content`, as `read_json`; `where` says where it was found.

    >>> parse_json(b'{"a": [1, 2.5]}', "note", "a note", "Write one.")
    {'a': [1, 2.5]}
    """
    return _parsed(json.loads, content, where, expected, fix)


def is_shallow(value: Any) -> bool:
    """Whether dicts, lists and tuples of `value` lie at most `DEEPEST` deep within each other.

    >>> is_shallow({"a": [1, [2]]}), is_shallow([[]] * 1000)
    (True, True)
    """
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return True
    return False


def fits(value: Any, kind: Any) -> bool:
    """Whether `value`, as JSON gives it, is of the annotated `kind`: plain types, unions, and dicts of them.

    >>> fits(3, float), fits(True, int), fits(None, float | None), fits({"fc1": 0.5}, dict[str, float])
    (True, False, True, True)
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or isinstance(value, NoneType if kind is None else kind)


def has(value: Any, parts: Mapping[str, Any]) -> bool:
    """Whether `value` is a dict with these `parts`, each of which fits its kind.

    >>> has({"label": "SNIP", "more": 1}, {"label": str}), has({}, {"label": str}), has([], {})
    (True, False, False)
    """
    return isinstance(value, dict) and all(fits(value.get(name), kind) for name, kind in parts.items())


def _parsed(parse: Callable[[str], Any], content: bytes | str, where: str, expected: str, fix: str) -> Any:
    try:
        value = parse(content if isinstance(content, str) else content.decode("utf-8"))
    except RecursionError as error:
        raise StoreError(f"{where}, nested too deeply", expected, fix) from error
    except ValueError as error:
        raise StoreError(f"{where}: {error}", expected, fix) from error
    if not is_shallow(value):
        raise StoreError(f"{where}, nested more than {DEEPEST} deep", expected, fix)
    return value


def _inner(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
