"""The three products of a convolution, without autograd, found once for images of such sizes, strides and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.activations import require_activation
from pollard.errors import InvalidInput, KernelError
from pollard.formats.topology import Topology
from pollard.kernels.code.fallback import warn
from pollard.kernels.code.target import current
from pollard.kernels.convolutions.calls import Convolution
from pollard.kernels.convolutions.tuned import Call
from pollard.kernels.convolutions.window import Sizes, Window
from pollard.kernels.products.backend import GENERATED, choose
from pollard.kernels.products.checks import check_dtype, check_pair, check_vector, extent, require_there
from pollard.kernels.products.derived import calls
from pollard.kernels.products.dispatch import RECENT
from pollard.settings import Settings

Make = Callable[[Convolution, tuple[Tensor, ...]], Call]


def serves(x: Tensor, topology: Topology, window: Window) -> bool:
    """Whether kernels compute a convolution of `x` `(samples, channels, rows, columns)`; elsewhere it goes by panels, or is unfolded.

    Raises InvalidInput for images of other channels, or that the kernel does not fit in.
    """
    channels = window.channels(topology.shape)[0]
    if x.dim() != len(window.kernel) + 2 or x.shape[1] != channels:
        axes = ("planes", "rows", "columns")[-len(window.kernel) :]
        raise InvalidInput(
            f"images of shape {tuple(x.shape)}",
            f"(samples, {channels}, {', '.join(axes)})",
            "The channels of the input must be those that the convolution was made for.",
        )
    window.extents(x.shape[2:])
    return window.planar and 0 not in (x.numel(), topology.grains) and generated(x)


def by_panels(device: torch.device) -> bool:
    """Whether torch's own convolutions compute there, by panels of the weight: on GPUs, unless the reference is asked for."""
    return device.type not in ("cpu", "meta") and Settings.asked_target() != "reference"


def generated(images: Tensor) -> bool:
    """Whether generated kernels compute on that device, in that dtype."""
    return choose(images.device, images.dtype)[0] is GENERATED


def forward(
    x: Tensor,
    values: Tensor,
    topology: Topology,
    window: Window,
    bias: Tensor | None,
    *,
    activation: str | None = None,
) -> Tensor | None:
    """``y = W * x + bias``, then the activation, if any: `(samples, out, rows, columns)`, contiguous, of x's dtype; None where no kernel compiles.

    Values and bias are of x's dtype, or float32 beside half precision.
    """
    given = (x, values) if bias is None else (x, values, bias)

    def make(convolution: Convolution, tensors: tuple[Tensor, ...]) -> Call:
        require_activation(activation)
        check_dtype("values", values.dtype, x)
        check_vector("values", values, topology.nnz, x.device, values.dtype)
        if bias is not None:
            check_vector("bias", bias, topology.shape[0], x.device, values.dtype)
        offset = tensors[2] if bias is not None else None
        return convolution.forward(tensors[0], tensors[1], offset, activation=activation)

    return _run(("forward", window, activation), topology, given, make)


def input_grad(grad: Tensor, values: Tensor, topology: Topology, window: Window, sizes: Sizes) -> Tensor | None:
    """The gradient in x, whose images are of `sizes`, contiguous and of the gradient's dtype; None where no kernel compiles."""

    def make(convolution: Convolution, tensors: tuple[Tensor, ...]) -> Call:
        _check_images("grad", grad, (len(grad), topology.shape[0], *window.extents(sizes)))
        check_dtype("values", values.dtype, grad)
        check_vector("values", values, topology.nnz, grad.device, values.dtype)
        return convolution.input_grad(tensors[0], tensors[1], sizes)

    return _run(("input_grad", window, sizes), topology, (grad, values), make)


def value_grad(grad: Tensor, x: Tensor, topology: Topology, window: Window) -> Tensor | None:
    """The gradient in values, float32; None where no kernel compiles."""

    def make(convolution: Convolution, tensors: tuple[Tensor, ...]) -> Call:
        _check_images("x", x, (len(x), topology.shape[1] // window.taps, *x.shape[2:]))
        _check_images("grad", grad, (len(x), topology.shape[0], *window.extents((x.shape[2], x.shape[3]))))
        check_pair(grad, x)
        return convolution.value_grad(tensors[0], tensors[1])

    return _run(("value_grad", window), topology, (grad, x), make)


def _check_images(name: str, images: Tensor, shape: tuple[int, ...]) -> None:
    """Raises InvalidInput unless `images` are of that shape: kernels check nothing themselves."""
    if images.shape != shape or len(shape) != 4:
        raise InvalidInput(
            f"{name} of shape {tuple(images.shape)}",
            f"(samples, channels, rows, columns), here {shape}",
            "Pass the gradient of the output that these images gave.",
        )


class _Way(NamedTuple):
    """How it is computed, if it is, which tensors are brought in order first, and the bytes that each has to have."""

    call: Call | None
    copied: tuple[bool, ...]
    needed: tuple[int, ...]


def _run(what: tuple[Any, ...], topology: Topology, tensors: tuple[Tensor, ...], make: Make) -> Tensor | None:
    threads = torch.get_num_threads()
    key = (what, threads, Settings.asked_target(), *((each.shape, each.stride(), each.dtype) for each in tensors))
    recent = calls(topology).recent
    way = recent.get(key)
    if way is None:
        if len(recent) >= RECENT:
            recent.clear()
        target = current()
        assert target is not None, "chosen for a CPU without kernels"
        convolution = Convolution(topology, what[1], target, threads)
        way = recent[key] = _way(tensors, lambda ready: make(convolution, ready))
    call, copied, needed = way
    require_there(tensors, needed)
    if call is None:
        return None
    return call(*_ready(tensors, copied))


def _way(tensors: tuple[Tensor, ...], make: Callable[[tuple[Tensor, ...]], Call]) -> _Way:
    copied = tuple(not (_rows_lie_together(each) if each.dim() == 4 else each.is_contiguous()) for each in tensors)
    needed = tuple(extent(each) for each in tensors)
    try:
        return _Way(make(_ready(tensors, copied)), copied, needed)
    except KernelError as refused:
        warn(str(refused))
        return _Way(None, copied, needed)


def _ready(tensors: tuple[Tensor, ...], copied: tuple[bool, ...]) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() if copy else each for each, copy in zip(tensors, copied, strict=True))


def _rows_lie_together(images: Tensor) -> bool:
    """Whether the pixels of a channel follow one another: samples and channels may be anywhere."""
    return images.stride(3) == 1 and images.stride(2) == images.shape[3]


__all__ = ["by_panels", "forward", "generated", "input_grad", "serves", "value_grad"]
