"""Weights without memory: matrices that come some rows at a time, as tensors that torch computes with."""

from pollard.streamed import functions as functions
from pollard.streamed import operators as operators
