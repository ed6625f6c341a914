"""Weights without memory: matrices that come some rows at a time, as tensors that torch computes with."""

# What torch may do to them joins by being imported.
from pollard.streamed import functions, operators

__all__ = ["functions", "operators"]
