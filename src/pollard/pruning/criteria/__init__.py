"""Criteria: from a weight to its scores, high = keep. A module that exists here joins by being imported."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pollard.pruning.criteria.criterion import CRITERIA, Criterion, criterion, own_allocation

__all__ = ["CRITERIA", "Criterion", "criterion", "own_allocation"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
