"""The three products of a convolution as torch operators, for whoever has to see them: compilers, exporters, profilers.

As those of a linear layer, with a window: kernel, stride, dilation, and zeros before and after, a number of each for each axis, and of a
transposed convolution what is added to the result. Each derivative is one of the three operators again, so that derivatives of any order exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from pollard.activations import RELU
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.convolutions import dispatch, panels
from pollard.kernels.convolutions.window import Sizes, Window
from pollard.ops import matmul
from pollard.ops.operators import TAGS, apart, linear_backward, operators, register, standing, topology_of

BLOCK = 1 << 22  # numbers of unfolded images that are held at once, where they have to be unfolded: 16 MB

_library = torch.library.Library("pollard", "FRAGMENT")
_OF_W = "Tensor row_pointers, Tensor columns"
_library.define(
    f"convolution(Tensor x, Tensor values, {_OF_W}, Tensor? bias, SymInt in_features, str pattern, bool relu, int[] window) -> Tensor",
    tags=TAGS,
)
_library.define(
    f"convolution_input_grad(Tensor grad, Tensor values, {_OF_W}, SymInt in_features, str pattern, int[] window, SymInt[] sizes) "
    "-> Tensor",
    tags=TAGS,
)
_library.define(
    f"convolution_value_grad(Tensor grad, Tensor x, {_OF_W}, SymInt in_features, str pattern, int[] window, "
    "ScalarType? dtype=None) -> Tensor",
    tags=TAGS,
)
Kind = Literal["convolution", "convolution_input_grad", "convolution_value_grad"]


def flat(window: Window) -> list[int]:
    """`window` as operators take it."""
    zeros = (each for pair in window.padding for each in pair)
    return [*window.kernel, *window.stride, *window.dilation, *zeros, *(window.added or ())]


def window_of(numbers: Sequence[int]) -> Window:
    """What `flat` made numbers of."""
    # Five numbers an axis, six of a transposed one, of three axes at most.
    axes = len(numbers) // (6 if len(numbers) % 5 else 5)
    kernel, stride, dilation, _, _, *added = (tuple(numbers[i : i + axes]) for i in range(0, len(numbers), axes))
    zeros = numbers[3 * axes : 5 * axes]
    return Window(kernel, stride, dilation, tuple(zip(zeros[::2], zeros[1::2], strict=True)), *added)


# -- on any device: by kernels, by panels, or unfolded, which says what they compute


def forward(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None, window: Window, *, activation: str | None = None
) -> Tensor:
    """``y[n, o, p] = sum over c, t of W[o, c, t] x[n, c, stride p + dilation t - before] + bias[o]``, then the activation, if any."""
    if dispatch.serves(x, topology, window) or dispatch.by_panels(x.device):
        return served(x, values, topology, bias, window, activation=activation)
    return _in_parts(x, values, topology, bias, window, activation=activation)


def served(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None, window: Window, *, activation: str | None = None
) -> Tensor:
    """`forward` of images that kernels are known to serve, or that go by panels; unfolded only where a kernel does not compile."""
    if dispatch.by_panels(x.device):
        return panels.forward(x, values, topology, bias, window, activation=activation)
    y = dispatch.forward(x, values, topology, window, bias, activation=activation)
    return _in_parts(x, values, topology, bias, window, activation=activation) if y is None else y


def _in_parts(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None, window: Window, *, activation: str | None
) -> Tensor:
    made = [unfolded(part, values, topology, bias, window, activation=activation) for part in _parts(x, window)]
    return torch.cat(made).contiguous()


def input_grad(grad: Tensor, values: Tensor, topology: Topology, window: Window, sizes: Sizes) -> Tensor:
    """The gradient of `forward` in x, whose images are of `sizes`."""
    if dispatch.by_panels(grad.device):
        return panels.input_grad(grad, values, topology, window, sizes)
    if _served(grad, topology):
        dx = dispatch.input_grad(grad, values, topology, window, sizes)
        if dx is not None:
            return dx
    channels = topology.shape[1] // window.taps
    (top, bottom), (left, right) = window.padding
    padded = sizes[0] + top + bottom, sizes[1] + left + right
    made = []
    for part in _parts(grad, window, channels):
        seen = matmul.input_grad(part.flatten(2).transpose(1, 2).flatten(0, 1), values, topology)
        seen = seen.unflatten(0, (len(part), -1)).transpose(1, 2)
        folded = functional.fold(seen, padded, window.kernel, window.dilation, 0, window.stride)
        made.append(folded[..., top : top + sizes[0], left : left + sizes[1]])
    return torch.cat(made).contiguous()


def value_grad(grad: Tensor, x: Tensor, topology: Topology, window: Window, dtype: torch.dtype | None = None) -> Tensor:
    """The gradient of `forward` in values, of x's dtype or float32."""
    if dispatch.by_panels(grad.device):
        return panels.value_grad(grad, x, topology, window, dtype)
    if _served(grad, topology):
        found = dispatch.value_grad(grad, x, topology, window)
        if found is not None:
            return found.to(dtype or x.dtype)
    total = x.new_zeros(topology.nnz, dtype=dtype or x.dtype)
    parts = _parts(x, window)
    for part, upstream in zip(parts, grad.split(len(parts[0])), strict=True):
        rows = upstream.flatten(2).transpose(1, 2).flatten(0, 1)
        total += matmul.value_grad(rows, _seen(part, window), topology, dtype)
    return total


def unfolded(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None, window: Window, *, activation: str | None = None
) -> Tensor:
    """`forward` in plain torch around the linear product of what each place sees: its specification."""
    y = matmul.linear(_seen(x, window), values, topology, bias, activation=activation)
    folded: Tensor = y.unflatten(0, (len(x), -1)).transpose(1, 2).unflatten(2, window.extents((x.shape[2], x.shape[3])))
    return folded


def _seen(x: Tensor, window: Window) -> Tensor:
    """`(samples * places, channels * taps)`: what each place sees."""
    padded = functional.pad(x, (*window.padding[1], *window.padding[0]))
    seen = functional.unfold(padded, window.kernel, window.dilation, 0, window.stride)
    return seen.transpose(1, 2).flatten(0, 1)


def _parts(images: Tensor, window: Window, channels: int | None = None) -> tuple[Tensor, ...]:
    """Some samples at a time, of which a block is unfolded."""
    one = (channels or images.shape[1]) * window.taps * images.shape[2] * images.shape[3]
    parts: tuple[Tensor, ...] = images.split(max(1, BLOCK // max(1, one)))
    return parts


def _served(images: Tensor, topology: Topology) -> bool:
    return dispatch.generated(images) and 0 not in (images.numel(), topology.grains)


def _convolution(
    x: Tensor, values: Tensor, row_pointers: Tensor, columns: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    in_features, pattern, relu, window = rest
    topology = standing(values, row_pointers, columns, in_features, pattern)
    return forward(x, values, topology, bias, window_of(window), activation=RELU if relu else None)


def _input_grad(grad: Tensor, values: Tensor, row_pointers: Tensor, columns: Tensor, *rest: Any) -> Tensor:
    in_features, pattern, window, sizes = rest
    topology = topology_of(row_pointers, columns, in_features, pattern)
    return input_grad(grad, values, topology, window_of(window), tuple(sizes))


def _value_grad(
    grad: Tensor, x: Tensor, row_pointers: Tensor, columns: Tensor, *rest: Any, dtype: Any = None
) -> Tensor:
    in_features, pattern, window, *more = rest
    topology = topology_of(row_pointers, columns, in_features, pattern)
    return value_grad(grad, x, topology, window_of(window), more[0] if more else dtype)


# -- shapes without data, for compilers


def _fake_convolution(
    x: Tensor, values: Tensor, row_pointers: Tensor, columns: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    _, pattern, _, numbers = rest
    window, rows = window_of(numbers), (row_pointers.shape[0] - 1) * Pattern.parse(pattern).rows
    return x.new_empty((x.shape[0], rows // window.row_taps, *window.extents(x.shape[2:])))


def _fake_input_grad(grad: Tensor, values: Tensor, row_pointers: Tensor, columns: Tensor, *rest: Any) -> Tensor:
    in_features, _, window, sizes = rest
    return grad.new_empty((grad.shape[0], in_features // window_of(window).column_taps, *sizes))


def _fake_value_grad(
    grad: Tensor, x: Tensor, row_pointers: Tensor, columns: Tensor, *rest: Any, dtype: Any = None
) -> Tensor:
    _, pattern, _, *more = rest
    return x.new_empty(columns.shape[0] * Pattern.parse(pattern).size, dtype=(more[0] if more else dtype) or x.dtype)


# -- derivatives


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, row_pointers, columns, _, _, ctx.pattern, ctx.relu, ctx.window = inputs
    ctx.save_for_backward(x, values, row_pointers, columns, output if ctx.relu else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, values, row_pointers, columns, output = ctx.saved_tensors
    rest = (row_pointers, columns, x.shape[1] * window_of(ctx.window).column_taps, ctx.pattern, ctx.window)
    x_needs, values_need, _, _, bias_needs, *_ = ctx.needs_input_grad
    gradients = apart(
        lambda u: operators().convolution_input_grad(u, values, *rest, list(x.shape[2:])),
        lambda u: operators().convolution_value_grad(u, x, *rest, values.dtype),
    )
    dx, dvalues, dbias = linear_backward(grad, output, (x_needs, values_need, bias_needs), gradients, values.dtype)
    return dx, dvalues, None, None, dbias, None, None, None, None


# With C(x, w), G(g, w) and V(g, x), all linear in both, from the gradient u of a product of a and b to those in a and in b.
_ADJOINTS: dict[Kind, Callable[[Tensor, Tensor, Tensor], tuple[tuple[Kind, Tensor, Tensor], ...]]] = {
    "convolution_input_grad": lambda u, g, w: (("convolution", u, w), ("convolution_value_grad", g, u)),
    "convolution_value_grad": lambda u, g, x: (("convolution", x, u), ("convolution_input_grad", g, u)),
}


def _pair_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    left, right, row_pointers, columns, *ctx.sizes = inputs
    ctx.save_for_backward(left, right, row_pointers, columns)


def _pair_backward(kind: Kind) -> Callable[[Any, Tensor], tuple[Any, ...]]:
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        left, right, *both = ctx.saved_tensors
        found = [
            _again(adjoint, both, ctx.sizes[:3], of) if need else None
            for adjoint, of, need in zip(
                _ADJOINTS[kind](upstream, left, right), (left, right), ctx.needs_input_grad, strict=False
            )
        ]
        return *found, *(None,) * (len(ctx.needs_input_grad) - 2)

    return backward


def _again(adjoint: tuple[Kind, Tensor, Tensor], both: list[Tensor], sizes: list[Any], of: Tensor) -> Tensor:
    kind, left, right = adjoint
    in_features, pattern, window = sizes
    rest: dict[Kind, tuple[Any, ...]] = {
        "convolution": (None, in_features, pattern, False, window),
        "convolution_input_grad": (in_features, pattern, window, list(of.shape[2:])),
        "convolution_value_grad": (in_features, pattern, window, of.dtype),
    }
    made: Tensor = getattr(operators(), kind)(left, right, *both, *rest[kind])
    return made


register(_library, "convolution", _convolution, _fake_convolution, (_backward, _context))
register(
    _library,
    "convolution_input_grad",
    _input_grad,
    _fake_input_grad,
    (_pair_backward("convolution_input_grad"), _pair_context),
)
register(
    _library,
    "convolution_value_grad",
    _value_grad,
    _fake_value_grad,
    (_pair_backward("convolution_value_grad"), _pair_context),
)


@register_flop_formula(
    [operators().convolution, operators().convolution_value_grad, operators().convolution_input_grad]
)
def _flops(
    left: torch.Size, right: torch.Size, pointers: torch.Size, columns: torch.Size, *rest: Any, **named: Any
) -> int:
    """A multiplication and an addition for each kept weight, sample and place of the result, or of the images of a transposed one."""
    gradient = isinstance(rest[0], int)
    pattern, window = rest[1 if gradient else 2], window_of(rest[2 if gradient else 4])
    if window.added is None:
        places = left[2:] if gradient else window.extents(left[2:])
    else:
        # Values have one dimension, and then the sizes are given.
        places = (right[2:] or rest[3]) if gradient else left[2:]
    return 2 * left[0] * prod(places) * columns[0] * Pattern.parse(pattern).size


__all__ = ["flat", "forward", "input_grad", "served", "unfolded", "value_grad"]
