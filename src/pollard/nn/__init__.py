"""Modules that store what they keep, their dense twin, and surgery on any torch model."""

from pollard.nn.folding import fold_norms_
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear
from pollard.nn.surgery import densify_, sparsify_

__all__ = ["MaskedLinear", "SparseLinear", "densify_", "fold_norms_", "sparsify_"]
