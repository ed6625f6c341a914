"""Networks as people name them, each a plain torch module from its paper. One that exists here joins by being imported."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pollard.networks.architecture import ARCHITECTURES, CIFAR, Architecture, Ends, architecture
from pollard.networks.building import build, known, require_name, usual_ends
from pollard.networks.fully_connected import is_fully_connected
from pollard.networks.own import FUNCTION, function_named, is_own

__all__ = [
    "ARCHITECTURES",
    "CIFAR",
    "FUNCTION",
    "Architecture",
    "Ends",
    "architecture",
    "build",
    "function_named",
    "is_fully_connected",
    "is_own",
    "known",
    "require_name",
    "usual_ends",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
