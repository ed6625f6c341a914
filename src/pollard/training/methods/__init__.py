"""Methods of sparse training. A module that exists here joins by being imported."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pollard.training.methods import drop, grow
from pollard.training.methods.method import METHODS, Method, method

__all__ = ["METHODS", "Method", "drop", "grow", "method"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
