"""Convolutions with a sparse weight: by kernels of their own, or unfolded, which says what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pollard.formats.topology import Topology
from pollard.kernels.convolutions import dispatch
from pollard.kernels.convolutions.window import Window
from pollard.ops import matmul
from pollard.ops.operators import MASTERS, autocast


def convolve(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None, window: Window, *, relu: bool = False
) -> Tensor | None:
    """``y[n, o, p] = sum over c, t of W[o, c, t] x[n, c, stride p + dilation t - before] + bias[o]``, then ReLU if asked.

    x: `(samples, channels, rows, columns)`, any strides; W, of `values` and `topology`, `(out, channels * taps)`. Returns
    `(samples, out, rows, columns)`, contiguous; None where no kernel computes it, as for compilers, transforms and float64.
    Differentiable in x, values and bias, any number of times.
    """
    if not matmul.direct(x, values, bias):
        return None
    if torch.is_autocast_enabled("cpu"):
        x, values = autocast("cpu", x), autocast("cpu", values, stays=MASTERS)
        bias = None if bias is None else autocast("cpu", bias, stays=MASTERS)
    if not dispatch.serves(x, topology, window):
        return None
    if torch.is_grad_enabled():
        y: Tensor = _apply(x, values, bias, topology, window, relu)
        return y
    return _forward(x, values, bias, topology, window, relu)


def unfolded(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None, window: Window, *, relu: bool = False
) -> Tensor:
    """`convolve` in plain torch around the linear product of what each place sees: its specification."""
    rows, columns = window.extents((x.shape[2], x.shape[3]))
    padded = functional.pad(x, (*window.padding[1], *window.padding[0]))
    seen = functional.unfold(padded, window.kernel, window.dilation, 0, window.stride)
    y = matmul.linear(seen.transpose(1, 2).reshape(-1, topology.shape[1]), values, topology, bias, relu=relu)
    folded: Tensor = y.reshape(x.shape[0], rows * columns, -1).transpose(1, 2).unflatten(2, (rows, columns))
    return folded


def _forward(x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology, window: Window, relu: bool) -> Tensor:
    y = dispatch.forward(x, values, topology, window, bias, relu=relu)
    return unfolded(x, values, topology, bias, window, relu=relu).contiguous() if y is None else y


class _Convolution(torch.autograd.Function):
    """By kernels; derivatives of derivatives are those of what is unfolded."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology, window: Window, relu: bool
    ) -> Tensor:
        y = _forward(x, values, bias, topology, window, relu)
        ctx.topology, ctx.window, ctx.has_bias = topology, window, bias is not None
        ctx.save_for_backward(x, values, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, values, output = ctx.saved_tensors
        if output is not None:
            grad = grad.masked_fill(output <= 0, 0.0)
        needs = ctx.needs_input_grad[:3]
        bias = grad.sum((0, 2, 3), dtype=values.dtype) if needs[2] else None
        found = None
        if matmul.direct(grad, values) and not torch.is_grad_enabled():
            found = _gradients(grad, x, values, ctx.topology, ctx.window, needs)
        return *(found or _derived(grad, x, values, ctx.topology, ctx.window, needs)), bias, None, None, None


def _gradients(
    grad: Tensor, x: Tensor, values: Tensor, topology: Topology, window: Window, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None] | None:
    dx = dispatch.input_grad(grad, values, topology, window, (x.shape[2], x.shape[3])) if needs[0] else None
    dvalues = dispatch.value_grad(grad, x, topology, window) if needs[1] else None
    if (needs[0] and dx is None) or (needs[1] and dvalues is None):
        return None
    return dx, None if dvalues is None else dvalues.to(values.dtype)


def _derived(
    grad: Tensor, x: Tensor, values: Tensor, topology: Topology, window: Window, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """By autograd, through which more derivatives go."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        given = [
            each if again else each.detach().requires_grad_(need)
            for each, need in zip((x, values), needs, strict=False)
        ]
        wanted = [each for each, need in zip(given, needs, strict=False) if need]
        y = unfolded(given[0], given[1], topology, None, window)
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=again))
    return tuple(next(found) if need else None for need in needs[:2])


_apply: Any = super(torch.autograd.Function, _Convolution).apply

__all__ = ["convolve", "unfolded"]
