"""Every package states its public names once, in order, and means all of them."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

import pollard

# The command line is used from a shell, and what `pollard` calls is in the project's metadata.
PACKAGES = [
    "pollard",
    *(
        info.name
        for info in pkgutil.walk_packages(pollard.__path__, "pollard.")
        if info.ispkg and info.name != "pollard.cli"
    ),
]


def public_names(package: ModuleType) -> set[str]:
    """Names that `package` or its modules define: no submodules, nothing from elsewhere."""
    return {
        name
        for name, value in vars(package).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "").startswith(package.__name__)
    }


def reading_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions and modules: the order ruff sorts by."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_and_without_doubles(name):
    names = importlib.import_module(name).__all__
    assert list(names) == sorted(set(names), key=reading_order)


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_everything_public(name):
    package = importlib.import_module(name)
    assert public_names(package) <= set(package.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_in_all_exists(name):
    package = importlib.import_module(name)
    assert [public for public in package.__all__ if not hasattr(package, public)] == []
