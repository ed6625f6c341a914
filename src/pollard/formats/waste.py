"""What it costs to lay an unstructured mask on a pattern of larger grains."""

from __future__ import annotations

import math

import torch

from pollard.errors import PatternError
from pollard.formats.indices import check_density
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology


def waste_factor(mask: torch.Tensor, pattern: str | Pattern) -> float:
    """Weights laid out over weights needed when an unstructured `mask` (out, in) is laid on `pattern`; 1 at best.

    >>> waste_factor(torch.eye(4, dtype=torch.bool), "v4")
    4.0
    """
    covering = Topology.covering(mask, pattern)
    return covering.nnz / int(mask.sum()) if covering.nnz else 1.0


def expected_waste_factor(density: float, pattern: str | Pattern) -> float:
    """`(1 - (1 - density)**size) / density`: the mean waste factor of masks that keep each weight independently.

    Raises PatternError under `N:M`, which such masks do not fit.

    >>> round(expected_waste_factor(0.1, "v4"), 2), round(expected_waste_factor(0.1, "v8"), 2)
    (3.44, 5.7)
    """
    pattern = Pattern.parse(pattern)
    check_density(density)
    if pattern.m:
        raise PatternError(f"pattern {pattern}", "grains that any mask can be laid on", "Ask for vN or bRxC.")
    if density == 1:
        return 1.0
    return -math.expm1(pattern.size * math.log1p(-density)) / density
