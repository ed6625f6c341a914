"""Which kernel a convolution gets on this machine, and why."""

from __future__ import annotations

import torch
from torch import Tensor

from pollard.arguments import require_one_of
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.code.target import current
from pollard.kernels.convolutions import dispatch
from pollard.kernels.convolutions.calls import Convolution
from pollard.kernels.convolutions.window import Window
from pollard.kernels.products.backend import GENERATED, choose
from pollard.kernels.products.explanation import DTYPES, Explanation, device_named

OPERATIONS = ("forward", "input_grad")


def explain(
    operation: str,
    shape: tuple[int, int, int, int],
    density: float,
    pattern: str | Pattern,
    *,
    images: tuple[int, ...],
    dtype: str,
    device: str = "cpu",
) -> Explanation:
    """Choose, tuning if need be, for a random topology of `shape` (out, channels, rows and columns of the kernel), of stride 1 and
    padded to the same size, over random `images` (samples, channels, rows, columns), on torch's threads.

    operation: forward or input_grad; the gradient in values has nothing to be chosen. device: as torch names it; elsewhere than on a
    CPU torch's own convolutions take panels of the weight. Raises InvalidInput on others.
    """
    require_one_of("operation of a convolution", operation, OPERATIONS, "Name the product to explain.")
    require_one_of("dtype", dtype, DTYPES, "Name the dtype of the layer.")
    kind = DTYPES[dtype]
    place = device_named(device)
    backend, reason = choose(place, kind)
    if backend is not GENERATED:
        return Explanation(None, "panels" if dispatch.by_panels(place) else "unfolded", reason)
    out, channels, *kernel = shape
    around = [(size // 2, (size - 1) // 2) for size in kernel]
    window = Window((kernel[0], kernel[1]), (1, 1), (1, 1), (around[0], around[1]))
    topology = Topology.random((out, channels * window.taps), density, pattern, torch.Generator().manual_seed(0))
    x, values = (torch.randn(size, dtype=torch.float32, device="cpu").to(kind) for size in (images, (topology.nnz,)))
    if not dispatch.serves(x, topology, window):
        return Explanation(None, "unfolded", "nothing is kept, or there are no images")
    if operation == "forward":
        dispatch.forward(x, values, topology, window, None)
        return explain_run(x, topology, window, kind)
    rows, columns = window.extents((images[2], images[3]))
    grad = torch.randn((images[0], out, rows, columns), dtype=torch.float32, device="cpu").to(kind)
    sizes = images[2], images[3]
    dispatch.input_grad(grad, values, topology, window, sizes)
    return explain_run(grad, topology, window, kind, sizes)


def explain_run(
    images: Tensor, topology: Topology, window: Window, values: torch.dtype, sizes: tuple[int, int] | None = None
) -> Explanation:
    """What computes a convolution of these images that has been computed already; sizes: of the images whose gradient it makes."""
    target = current()
    assert target is not None, "kernels are generated for it"
    convolution = Convolution(topology, window, target, torch.get_num_threads())
    own = convolution.over(images, values) if sizes is None else convolution.back_over(images, values, sizes)[0]
    decision = own.decision()
    timed = tuple((own.describe(choice), microseconds) for choice, microseconds in decision.candidates)
    return Explanation(own.spec_of(decision.choice), own.describe(decision.choice), decision.reason, timed)


__all__ = ["OPERATIONS", "explain", "explain_run"]
