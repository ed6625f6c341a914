"""Modules of torch that hold matrices, rebuilt of linear layers. A module that exists here joins by being imported."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pollard.composites.composing import (
    Composing,
    axes_of,
    composable,
    composed,
    holders,
    matrices,
    parts_of,
    put,
    put_together,
    refuse_dense,
    shared_copy,
    whole_again,
)
from pollard.composites.composite import COMPOSITES, Composite, composite

__all__ = [
    "COMPOSITES",
    "Composing",
    "Composite",
    "axes_of",
    "composable",
    "composed",
    "composite",
    "holders",
    "matrices",
    "parts_of",
    "put",
    "put_together",
    "refuse_dense",
    "shared_copy",
    "whole_again",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
