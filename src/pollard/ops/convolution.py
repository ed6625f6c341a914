"""Convolutions with a sparse weight: by a kernel at once, or through torch's dispatcher where somebody watches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pollard.activations import RELU, activated, read_off
from pollard.formats.topology import Topology
from pollard.kernels.convolutions import dispatch
from pollard.kernels.convolutions.window import Sizes, Window
from pollard.ops import convolution_operators as ways
from pollard.ops import matmul
from pollard.ops.operators import MASTERS, apart, arrays, autocast, linear_backward, operators


def convolve(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None, window: Window, *, activation: str | None = None
) -> Tensor | None:
    """``y[n, o, p] = sum over c, t of W[o, c, t] x[n, c, stride p + dilation t - before] + bias[o]``, then the activation, if any, as of `linear`.

    x: `(samples, channels, rows, columns)`, any strides; W, of `values` and `topology`, `(out, channels * taps)`. Returns
    `(samples, out, rows, columns)`, contiguous; None where whoever asks has to unfold x: no kernel computes it, as none does of three
    axes or transposed on the CPU, or a transform of torch.func or an export to ONNX is at work. Differentiable in x, values and bias, any number of times.
    """
    watched = not matmul.direct(x, values, bias)
    if not read_off(activation) and (watched or matmul.differentiated(x, values, bias)):
        plain = convolve(x, values, topology, bias, window)
        return None if plain is None else activated(plain, activation)
    if watched:
        if matmul.needs_parts(x) or not (window.planar or dispatch.by_panels(x.device)):
            return None
        row_pointers, columns, *sizes = arrays(topology)
        seen: Tensor = operators().convolution(
            x, values, row_pointers, columns, bias, *sizes, activation == RELU, ways.flat(window)
        )
        return seen
    if torch.is_autocast_enabled(x.device.type):
        place = x.device.type
        x, values = autocast(place, x), autocast(place, values, stays=MASTERS)
        bias = None if bias is None else autocast(place, bias, stays=MASTERS)
    if not (dispatch.serves(x, topology, window) or dispatch.by_panels(x.device)):
        return None
    if torch.is_grad_enabled() and read_off(activation):
        y: Tensor = _apply(x, values, bias, topology, window, activation == RELU)
        return y
    return ways.served(x, values, topology, bias, window, activation=activation)


def _input_grad(grad: Tensor, values: Tensor, topology: Topology, window: Window, sizes: Sizes) -> Tensor:
    if not torch.is_grad_enabled() and matmul.direct(grad, values):
        return ways.input_grad(grad, values, topology, window, sizes)
    made: Tensor = operators().convolution_input_grad(grad, values, *arrays(topology), ways.flat(window), list(sizes))
    return made


def _value_grad(grad: Tensor, x: Tensor, topology: Topology, window: Window, dtype: torch.dtype) -> Tensor:
    if not torch.is_grad_enabled() and matmul.direct(grad, x):
        return ways.value_grad(grad, x, topology, window, dtype)
    made: Tensor = operators().convolution_value_grad(grad, x, *arrays(topology), ways.flat(window), dtype)
    return made


class _Eager(torch.autograd.Function):
    """`convolve` without torch's dispatcher, the same numbers; derivatives of derivatives take the operators."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology, window: Window, relu: bool
    ) -> Tensor:
        y = ways.served(x, values, topology, bias, window, activation=RELU if relu else None)
        ctx.topology, ctx.window = topology, window
        ctx.save_for_backward(x, values, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, values, output = ctx.saved_tensors
        topology, window = ctx.topology, ctx.window
        gradients = apart(
            lambda u: _input_grad(u, values, topology, window, tuple(x.shape[2:])),
            lambda u: _value_grad(u, x, topology, window, values.dtype),
        )
        needs = ctx.needs_input_grad[:3]
        return *linear_backward(grad, output, needs, gradients, values.dtype), None, None, None


# `Function.apply` makes ready for transforms, which are not at work here: its parent's does the rest.
_apply: Any = super(torch.autograd.Function, _Eager).apply

__all__ = ["convolve"]
