"""Sparse products as torch operators."""

from pollard.ops.matmul import input_grad, linear, value_grad

__all__ = ["input_grad", "linear", "value_grad"]
