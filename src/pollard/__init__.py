"""Sparse neural networks made real in PyTorch: choose what to keep, store only that, train only that, run only that.

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from sys import modules
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
    from pollard.nn.folding import fold_norms_ as fold_norms_
    from pollard.nn.loading import load_sparse as load_sparse
    from pollard.nn.surgery import densify_ as densify_
    from pollard.nn.surgery import sparsify_ as sparsify_
    from pollard.pruning.checkpoints import prune_checkpoint as prune_checkpoint
    from pollard.pruning.decision import prune as prune
    from pollard.pruning.decision import prune_at_init as prune_at_init
    from pollard.pruning.found import plan_from_masks as plan_from_masks
    from pollard.pruning.found import plan_from_zeros as plan_from_zeros
    from pollard.pruning.plan import Plan as Plan
    from pollard.pruning.scoring import Rounds as Rounds
    from pollard.pruning.scoring import Scoring as Scoring
    from pollard.streamed.birth import never_dense as never_dense
    from pollard.streamed.loading import load_streamed_ as load_streamed_
    from pollard.training.averaging import Averaged as Averaged
    from pollard.training.optimizers import decay_groups as decay_groups
    from pollard.training.shorthands import *  # noqa: F403 - one for each method that there is
    from pollard.training.sparsifier import Sparsifier as Sparsifier
    from pollard.training.start import sparse_training as sparse_training

__version__ = "0.1.0"

_HOMES = {
    "Averaged": "pollard.training.averaging",
    "Composite": "pollard.composites.composite",
    "Coverage": "pollard.coverage",
    "Pattern": "pollard.formats.pattern",
    "Plan": "pollard.pruning.plan",
    "Rounds": "pollard.pruning.scoring",
    "Scoring": "pollard.pruning.scoring",
    "SparseMatrix": "pollard.formats.matrix",
    "Sparsifier": "pollard.training.sparsifier",
    "Topology": "pollard.formats.topology",
    "composite": "pollard.composites.composite",
    "decay_groups": "pollard.training.optimizers",
    "densify_": "pollard.nn.surgery",
    "fold_norms_": "pollard.nn.folding",
    "load_sparse": "pollard.nn.loading",
    "load_streamed_": "pollard.streamed.loading",
    "never_dense": "pollard.streamed.birth",
    "plan_from_masks": "pollard.pruning.found",
    "plan_from_zeros": "pollard.pruning.found",
    "prune": "pollard.pruning.decision",
    "prune_at_init": "pollard.pruning.decision",
    "prune_checkpoint": "pollard.pruning.checkpoints",
    "sparse_training": "pollard.training.start",
    "sparsify_": "pollard.nn.surgery",
}
_MODULES = ("errors", "nn")

__all__ = [
    "Averaged",
    "Composite",
    "Coverage",
    "Pattern",
    "Plan",
    "Rounds",
    "Scoring",
    "SparseMatrix",
    "Sparsifier",
    "Topology",
    "composite",
    "decay_groups",
    "densify_",
    "errors",
    "fold_norms_",
    "load_sparse",
    "load_streamed_",
    "nn",
    "plan_from_masks",
    "plan_from_zeros",
    "prune",
    "prune_at_init",
    "prune_checkpoint",
    "sparse_training",
    "sparsify_",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"pollard.{name}")
    # Each method of sparse training is a call that makes a model sparse and gives the object whose step() does the rest.
    start = None if name.startswith("_") else import_module("pollard.training.shorthands").shorthand(name)
    if start is None:
        # With these Python suggests the nearest: set_ for set.
        raise AttributeError(f"module 'pollard' has no attribute {name!r}", name=name, obj=modules[__name__])
    return start


def __dir__() -> list[str]:
    return sorted({*__all__, *import_module("pollard.training.shorthands").__dir__()})
