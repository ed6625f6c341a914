"""Sparse neural networks made real in PyTorch: choose what to keep, store only that, train only that, run only that.

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pollard import errors as errors
    from pollard import nn as nn
    from pollard.composites.composite import Composite as Composite
    from pollard.composites.composite import composite as composite
    from pollard.coverage import Coverage as Coverage
    from pollard.formats.matrix import SparseMatrix as SparseMatrix
    from pollard.formats.pattern import Pattern as Pattern
    from pollard.formats.topology import Topology as Topology
    from pollard.nn.loading import load_sparse as load_sparse
    from pollard.nn.surgery import densify_ as densify_
    from pollard.nn.surgery import sparsify_ as sparsify_
    from pollard.pruning.decision import prune as prune
    from pollard.pruning.decision import prune_at_init as prune_at_init
    from pollard.pruning.found import plan_from_masks as plan_from_masks
    from pollard.pruning.found import plan_from_zeros as plan_from_zeros
    from pollard.pruning.plan import Plan as Plan
    from pollard.training.averaging import Averaged as Averaged
    from pollard.training.optimizers import decay_groups as decay_groups
    from pollard.training.shorthands import dsd as dsd
    from pollard.training.shorthands import gmp as gmp
    from pollard.training.shorthands import granet as granet
    from pollard.training.shorthands import gse as gse
    from pollard.training.shorthands import mest as mest
    from pollard.training.shorthands import rigl as rigl
    from pollard.training.shorthands import set_ as set_
    from pollard.training.shorthands import snfs as snfs
    from pollard.training.shorthands import sparse_momentum as sparse_momentum
    from pollard.training.shorthands import srigl as srigl
    from pollard.training.shorthands import static as static
    from pollard.training.shorthands import top_kast as top_kast
    from pollard.training.sparsifier import Sparsifier as Sparsifier
    from pollard.training.start import sparse_training as sparse_training

__version__ = "0.1.0"

_HOMES = {
    "Averaged": "pollard.training.averaging",
    "Composite": "pollard.composites.composite",
    "Coverage": "pollard.coverage",
    "Pattern": "pollard.formats.pattern",
    "Plan": "pollard.pruning.plan",
    "SparseMatrix": "pollard.formats.matrix",
    "Sparsifier": "pollard.training.sparsifier",
    "Topology": "pollard.formats.topology",
    "composite": "pollard.composites.composite",
    "decay_groups": "pollard.training.optimizers",
    "densify_": "pollard.nn.surgery",
    "load_sparse": "pollard.nn.loading",
    "plan_from_masks": "pollard.pruning.found",
    "plan_from_zeros": "pollard.pruning.found",
    "prune": "pollard.pruning.decision",
    "prune_at_init": "pollard.pruning.decision",
    "sparsify_": "pollard.nn.surgery",
}
# Methods of sparse training, each a call that makes a model sparse and gives the object whose step() does the rest.
_STARTS = (
    "dsd",
    "gmp",
    "granet",
    "gse",
    "mest",
    "rigl",
    "set_",
    "snfs",
    "sparse_momentum",
    "srigl",
    "static",
    "top_kast",
)
_HOMES |= dict.fromkeys(_STARTS, "pollard.training.shorthands") | {"sparse_training": "pollard.training.start"}
_MODULES = ("errors", "nn")

__all__ = [
    "Averaged",
    "Composite",
    "Coverage",
    "Pattern",
    "Plan",
    "SparseMatrix",
    "Sparsifier",
    "Topology",
    "composite",
    "decay_groups",
    "densify_",
    "dsd",
    "errors",
    "gmp",
    "granet",
    "gse",
    "load_sparse",
    "mest",
    "nn",
    "plan_from_masks",
    "plan_from_zeros",
    "prune",
    "prune_at_init",
    "rigl",
    "set_",
    "snfs",
    "sparse_momentum",
    "sparse_training",
    "sparsify_",
    "srigl",
    "static",
    "top_kast",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"pollard.{name}")
    raise AttributeError(f"module 'pollard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
