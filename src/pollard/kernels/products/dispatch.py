"""The three products with a sparse weight, without autograd: found once for tensors of such shapes, strides and dtypes.

Which backend computes them, whether the tensors are fit for it, and how the batch is cut: each call looks that up, and on the
CPU that the memory it was found for is still there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.activations import require_activation
from pollard.errors import KernelError
from pollard.formats.topology import Topology
from pollard.kernels.code.fallback import warn, warn_without_kernels
from pollard.kernels.code.target import current
from pollard.kernels.products.backend import GENERATED, REFERENCE, Backend, choose, tell_untuned
from pollard.kernels.products.checks import check_dtype, check_matrix, check_pair, check_vector, extent, require_there
from pollard.kernels.products.derived import calls
from pollard.kernels.products.task import HALVES, Call, Kind, Task
from pollard.settings import Settings

# Shapes and layouts whose calls are found at once; the others look their choice up again.
RECENT = 64


def forward(
    x: Tensor,
    values: Tensor,
    topology: Topology,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    rows: bool = False,
) -> Tensor:
    """``x @ W.T + bias`` for x `(batch, in)`, then the activation, if any, of `ACTIVATIONS`: `(batch, out)`, of x's dtype, features-first in memory, or
    with contiguous `rows`, if asked, where a kernel of ours runs.

    Values and bias are of x's dtype, or float32 where that is half precision; sums are float32, rounded once.
    Raises InvalidInput for tensors of other shapes, dtypes or devices, or whose memory is gone; so do the others.
    """
    key: Key = (
        _way, "forward", values.dtype, activation, rows, _threads(), _asked(), x.shape, x.stride(), x.dtype, x.is_cpu or x.device,
        values.shape, values.stride(), values.dtype, values.is_cpu or values.device,
    )  # fmt: skip
    y: Tensor
    if bias is None:
        y = _product(key, topology, (x, values))
    else:
        key = (*key, bias.shape, bias.stride(), bias.dtype, bias.is_cpu or bias.device)
        y = _product(key, topology, (x, values, bias))
    return y


def input_grad(grad: Tensor, values: Tensor, topology: Topology, *, rows: bool = False) -> Tensor:
    """``grad @ W`` for grad `(batch, out)`: `(batch, in)`, of grad's dtype, laid out as `forward` does."""
    return _bilinear("input_grad", values.dtype, grad, values, topology, rows=rows)


def value_grad(grad: Tensor, x: Tensor, topology: Topology, dtype: torch.dtype | None = None) -> Tensor:
    """``(grad.T @ x)`` at the kept weights: one number a value, of x's dtype, or float32 where that is asked for."""
    return _bilinear("value_grad", dtype or x.dtype, grad, x, topology)


def gradients(
    grad: Tensor, x: Tensor, values: Tensor, topology: Topology, *, rows: bool = False
) -> tuple[Tensor, Tensor]:
    """`input_grad`, and `value_grad` of values' dtype: the same numbers, of a `grad` that is brought in order once for both."""
    key = (
        _both, "input_grad", values.dtype, None, rows, _threads(), _asked(), grad.shape, grad.stride(), grad.dtype,
        grad.is_cpu or grad.device, x.shape, x.stride(), x.dtype, x.is_cpu or x.device,
        values.shape, values.stride(), values.dtype, values.is_cpu or values.device,
    )  # fmt: skip
    found: tuple[Tensor, Tensor] = _product(key, topology, (grad, x, values))
    return found


class _Way(NamedTuple):
    """How tensors of some shapes, strides and dtypes are multiplied, and the bytes that each has to have, on the CPU."""

    call: Callable[..., Any]
    needed: tuple[int, ...]


Key = tuple[Any, ...]

# Looked up once: every call asks.
_threads, _asked = torch.get_num_threads, Settings.asked_target


def _bilinear(
    kind: Kind, dtype: torch.dtype, left: Tensor, right: Tensor, topology: Topology, *, rows: bool = False
) -> Tensor:
    key = (
        _way, kind, dtype, None, rows, _threads(), _asked(), left.shape, left.stride(), left.dtype, left.is_cpu or left.device,
        right.shape, right.stride(), right.dtype, right.is_cpu or right.device,
    )  # fmt: skip
    found: Tensor = _product(key, topology, (left, right))
    return found


def _product(key: Key, topology: Topology, tensors: tuple[Tensor, ...]) -> Any:
    # The key says what makes the call, its task, which is put together only then, and all there is to ask of the tensors but where their memory is.
    recent = calls(topology).recent
    way = recent.get(key)
    if way is None:
        make, *task = key[:5]
        way = make(Task(*task), topology, tensors)
        if len(recent) >= RECENT:
            recent.clear()
        recent[key] = way
    call, needed = way
    require_there(tensors, needed)
    return call(*tensors)


def _both(task: Task, topology: Topology, tensors: tuple[Tensor, ...]) -> _Way:
    (grad, x, values), of_values = tensors, Task("value_grad", task.values)
    _check(task, topology, (grad, values))
    _check(of_values, topology, (grad, x))
    ordered = None
    with suppress(KernelError):  # the products will say so
        ordered = choose(grad.device, grad.dtype)[0].ordered(topology, grad)
    given = grad if ordered is None else ordered(grad)
    in_x, in_values = _way(task, topology, (given, values)).call, _way(of_values, topology, (given, x)).call

    def call(grad: Tensor, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        given = grad if ordered is None else ordered(grad)
        return in_x(given, values), in_values(given, x)

    return _Way(call, tuple(extent(each) for each in tensors) if grad.is_cpu else ())


def _way(task: Task, topology: Topology, tensors: tuple[Tensor, ...]) -> _Way:
    first = tensors[0]
    _check(task, topology, tensors)
    # On other devices memory is torch's own affair.
    needed = tuple(extent(each) for each in tensors) if first.is_cpu else ()
    nothing = 0 in (len(first), topology.grains)
    backend = REFERENCE if nothing else choose(first.device, first.dtype)[0]
    if first.dtype in HALVES and (backend is REFERENCE or (task.values != first.dtype and not backend.mixed)):
        return _Way(_rounded(task, topology), needed)
    if not nothing:
        _tell(backend, first.device)
    try:
        return _Way(backend.call(task, topology, tensors), needed)
    except KernelError as refused:
        warn(str(refused))
        return _Way(
            _rounded(task, topology) if first.dtype in HALVES else REFERENCE.call(task, topology, tensors), needed
        )


def _tell(backend: Backend, device: torch.device) -> None:
    """Warn, once, where nothing tuned runs."""
    tell_untuned(device)
    if device.type == "cpu" and backend is not GENERATED and current() is None:
        warn_without_kernels()


def _check(task: Task, topology: Topology, tensors: tuple[Tensor, ...]) -> None:
    (out, width), (first, second, *bias), kind = topology.shape, tensors, task.kind
    names = {"forward": ("x", "values", "bias"), "input_grad": ("grad", "values"), "value_grad": ("grad", "x")}[kind]
    check_matrix(names[0], first, width if kind == "forward" else out)
    require_activation(task.activation)
    if kind == "value_grad":
        check_matrix(names[1], second, width)
        check_pair(first, second)
        check_dtype("a gradient of values", task.values, first)
        return
    check_dtype(names[1], second.dtype, first)
    check_vector(names[1], second, topology.nnz, first.device, second.dtype)
    for each in bias:
        check_vector(names[2], each, out, first.device, second.dtype)


def _rounded(task: Task, topology: Topology) -> Call:
    """Half precision: through float32, rounded once."""
    product, options = _PRODUCTS[task.kind], {"activation": task.activation} if task.kind == "forward" else {}

    def call(left: Tensor, right: Tensor, *bias: Tensor) -> Tensor:
        result = product(left.float(), right.float(), topology, *(each.float() for each in bias), **options)
        return result.to(task.values if task.kind == "value_grad" else left.dtype)

    return call


_PRODUCTS: dict[Kind, Callable[..., Tensor]] = {
    "forward": forward, "input_grad": input_grad, "value_grad": value_grad
}  # fmt: skip

__all__ = ["forward", "input_grad", "value_grad"]
