"""Sparse neural networks made real in PyTorch: choose what to keep, store only that, train only that, run only that.

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pollard import errors as errors
    from pollard import nn as nn
    from pollard.formats.matrix import SparseMatrix as SparseMatrix
    from pollard.formats.pattern import Pattern as Pattern
    from pollard.formats.topology import Topology as Topology
    from pollard.nn.surgery import densify_ as densify_
    from pollard.nn.surgery import sparsify_ as sparsify_
    from pollard.pruning.decision import prune as prune
    from pollard.pruning.decision import prune_at_init as prune_at_init
    from pollard.pruning.plan import Plan as Plan

__version__ = "0.1.0"

_HOMES = {
    "Pattern": "pollard.formats.pattern",
    "Plan": "pollard.pruning.plan",
    "SparseMatrix": "pollard.formats.matrix",
    "Topology": "pollard.formats.topology",
    "densify_": "pollard.nn.surgery",
    "prune": "pollard.pruning.decision",
    "prune_at_init": "pollard.pruning.decision",
    "sparsify_": "pollard.nn.surgery",
}
_MODULES = ("errors", "nn")

__all__ = [
    "Pattern",
    "Plan",
    "SparseMatrix",
    "Topology",
    "densify_",
    "errors",
    "nn",
    "prune",
    "prune_at_init",
    "sparsify_",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"pollard.{name}")
    raise AttributeError(f"module 'pollard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
