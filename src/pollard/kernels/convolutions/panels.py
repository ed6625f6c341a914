"""The three products of a convolution by torch's own, some output channels of the weight at a time: for GPUs.

To multiply by zeros too takes a GPU less time than to unfold images, or to leave zeros out. A panel is those channels of the weight in
dense form, in the dtype of the images: `BYTES` of it at most, or one row of grains, for the time of one product. Sums are torch's,
rounded to that dtype; an infinite input makes outputs NaN that keep no weight of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pollard.activations import activated_
from pollard.formats.topology import Topology
from pollard.kernels.code.launch import runs_of
from pollard.kernels.convolutions.window import Sizes, Window
from pollard.kernels.products.checks import check_dtype, check_pair, check_vector
from pollard.kernels.products.placed import positions_on

BYTES = 1 << 24


def forward(
    x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None, window: Window, *, activation: str | None = None
) -> Tensor:
    """The convolution, then the bias and the activation, if any: contiguous, of x's dtype."""
    _check_values(x, values, topology)
    if bias is not None:
        check_vector("bias", bias, window.channels(topology.shape)[1], x.device, values.dtype)
    padded, inner = _padded(x, window), _inner(window)
    y: Tensor | None = None
    for rows, outs in _cut(topology, window, x.dtype):
        offset = None if bias is None else bias[outs].to(x.dtype)
        # No panel has a name here: it is gone before the next is made.
        part = _convolved(padded, _spread(values, topology, window, rows, x.dtype), offset, inner)
        if rows.stop - rows.start == topology.shape[0]:
            y = part.contiguous()
        else:
            y = part.new_empty(len(x), window.channels(topology.shape)[1], *part.shape[2:]) if y is None else y
            y[:, outs] = part
    assert y is not None, "a topology has rows"
    return activated_(y, activation)


def input_grad(grad: Tensor, values: Tensor, topology: Topology, window: Window, sizes: Sizes) -> Tensor:
    """The gradient of `forward` in x, whose images are of `sizes`; those of several panels are added up in single or double precision."""
    _check_values(grad, values, topology)
    inner = _inner(window)
    # Zeros that torch does not add are a part of the images, of which only the shape is asked for.
    around = [(0, 0)] * len(sizes) if inner is window else window.padding
    whole = [size + sum(zeros) for size, zeros in zip(sizes, around, strict=True)]
    like = grad.new_empty(1).expand(len(grad), window.channels(topology.shape)[0], *whole)
    total: Tensor | None = None
    for rows, outs in _cut(topology, window, grad.dtype):
        part = _backward(
            grad[:, outs], like, _spread(values, topology, window, rows, grad.dtype), inner, (True, False)
        )[0]
        if rows.stop - rows.start < topology.shape[0] and part.dtype is not torch.float64:
            part = part.float()
        total = part if total is None else total.add_(part)
    assert total is not None, "a topology has rows"
    for axis, (size, (before, _)) in enumerate(zip(sizes, around, strict=True), 2):
        total = total.narrow(axis, before, size)
    return total.to(grad.dtype).contiguous()


def value_grad(grad: Tensor, x: Tensor, topology: Topology, window: Window, dtype: torch.dtype | None = None) -> Tensor:
    """The gradient of `forward` in values, rounded to x's dtype as torch's own is, then of `dtype`."""
    check_pair(grad, x)
    padded, window = _padded(x, window), _inner(window)
    found = x.new_empty(topology.nnz, dtype=dtype or x.dtype)
    for rows, outs in _cut(topology, window, x.dtype):
        # Of the weight, only its shape is asked for.
        pair = outs.stop - outs.start, window.channels(topology.shape)[0]
        like = x.new_empty(1).expand(*(pair if window.added is None else reversed(pair)), *window.kernel)
        panel = _backward(grad[:, outs], padded, like, window, (False, True))[1].flatten(1)
        own, places = _places(topology, rows, x.device)
        found[own] = (panel if window.added is None else panel.t()).reshape(-1).index_select(0, places)
        del panel
    return found


def _cut(topology: Topology, window: Window, dtype: torch.dtype) -> Iterator[tuple[slice, slice]]:
    """Panels of about equal size: rows of the weight as a matrix, whole row groups and channels, and the output channels that they are."""
    (height, width), taps = topology.shape, window.row_taps
    unit = lcm(topology.pattern.rows, taps)
    for first, last in runs_of(height // unit, BYTES // (unit * width * dtype.itemsize)):
        yield slice(first * unit, last * unit), slice(first * unit // taps, last * unit // taps)


def _places(topology: Topology, rows: slice, device: torch.device) -> tuple[slice, Tensor]:
    """Which values stand in those rows, and where in a panel of them."""
    pattern, places = topology.pattern, positions_on(topology, device)
    if rows.stop - rows.start == topology.shape[0]:
        return slice(None), places
    first, last = (int(topology.row_pointers[row // pattern.rows]) * pattern.size for row in (rows.start, rows.stop))
    return slice(first, last), places[first:last] - rows.start * topology.shape[1]


def _spread(values: Tensor, topology: Topology, window: Window, rows: slice, dtype: torch.dtype) -> Tensor:
    """The weights of a convolution that has those rows alone."""
    own, places = _places(topology, rows, values.device)
    panel = values.new_zeros((rows.stop - rows.start) * topology.shape[1], dtype=dtype)
    panel[places] = values[own].to(dtype)
    return _weight(panel.view(-1, topology.shape[1]), window)


def _weight(matrix: Tensor, window: Window) -> Tensor:
    """As torch's convolutions take it: `(out, channels, *kernel)`, or `(channels, out, *kernel)` of a transposed one."""
    laid = matrix if window.added is None else matrix.t()
    weight: Tensor = laid.unflatten(1, (-1, *window.kernel)).contiguous()
    return weight


def _inner(window: Window) -> Window:
    """One that torch has: with as many zeros before as after, or with none."""
    if all(before == after for before, after in window.padding):
        return window
    return window._replace(padding=((0, 0),) * len(window.padding))


def _padded(x: Tensor, window: Window) -> Tensor:
    """Images with the zeros around them that torch does not add."""
    if _inner(window) is window:
        return x
    return functional.pad(x, [side for pair in reversed(window.padding) for side in pair])


_convolve: Any = torch.convolution
_gradients: Any = torch.ops.aten.convolution_backward


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    made: Tensor = _convolve(x, weight, bias, *_arguments(window))
    return made


def _arguments(window: Window) -> tuple[list[int] | bool | int, ...]:
    """Stride, padding, dilation, transposed or not, output padding and groups."""
    before = [each for each, _ in window.padding]
    added = list(window.added or [0] * len(before))
    return list(window.stride), before, list(window.dilation), window.added is not None, added, 1


def _backward(grad: Tensor, x: Tensor, weight: Tensor, window: Window, wanted: tuple[bool, bool]) -> list[Tensor]:
    """The gradients in x and the weight that are wanted."""
    made: list[Tensor] = _gradients(grad, x, weight, None, *_arguments(window), [*wanted, False])
    return made


def _check_values(images: Tensor, values: Tensor, topology: Topology) -> None:
    check_dtype("values", values.dtype, images)
    check_vector("values", values, topology.nnz, images.device, values.dtype)


__all__ = ["BYTES", "forward", "input_grad", "value_grad"]
