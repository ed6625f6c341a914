"""The three products with a sparse weight, without autograd: each picks a generated kernel, or the slow twin.

A kernel runs for float32, and for half precision that is brought to it; float64 takes torch's sparse products. Everything
else, and ``POLLARD_TARGET=reference``, takes the twin in `reference`. Which of them it is, whether the tensors are fit for
it, and how the batch is cut is found out once for tensors of such shapes, strides and dtypes. Each call looks that up, and
that the memory it was found for is still there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pollard.errors import KernelError
from pollard.formats.topology import Topology
from pollard.kernels import precisions, reference
from pollard.kernels.checks import check_matrix, check_pair, check_vector, extent, freed
from pollard.kernels.derived import calls
from pollard.kernels.fallback import warn, warn_without_kernels
from pollard.kernels.operand import Operand
from pollard.kernels.prepared import Call, prepared
from pollard.kernels.product import Product
from pollard.kernels.target import Target, current
from pollard.settings import Settings

# Shapes and layouts whose calls are found at once; the others look their choice up again.
RECENT = 64

Kind = Literal["forward", "input_grad", "value_grad"]


def forward(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ W.T + bias`` for x `(batch, in)`, then ReLU if asked: `(batch, out)`, features-first in memory.

    Raises InvalidInput for tensors of other shapes, dtypes or devices, or whose memory is gone; so do the others.
    """
    key = (
        "forward", relu, _threads(), _asked(), x.shape, x.stride(), x.dtype, x.is_cpu,
        values.shape, values.stride(), values.dtype, values.is_cpu,
    )  # fmt: skip
    if bias is None:
        return _product(key, topology, (x, values))
    return _product((*key, bias.shape, bias.stride(), bias.dtype, bias.is_cpu), topology, (x, values, bias))


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W`` for grad `(batch, out)`: `(batch, in)`, features-first in memory."""
    return _bilinear("input_grad", grad, values, topology)


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``(grad.T @ x)`` at the kept weights: one number a value."""
    return _bilinear("value_grad", grad, x, topology)


class _Way(NamedTuple):
    """How tensors of some shapes, strides and dtypes are multiplied, and the bytes that each has to have."""

    call: Call
    needed: tuple[int, ...]


Key = tuple[Any, ...]

# Looked up once: every call asks.
_threads, _asked = torch.get_num_threads, Settings.asked_target


def _bilinear(kind: Kind, left: Tensor, right: Tensor, topology: Topology) -> Tensor:
    key = (
        kind, False, _threads(), _asked(), left.shape, left.stride(), left.dtype, left.is_cpu,
        right.shape, right.stride(), right.dtype, right.is_cpu,
    )  # fmt: skip
    return _product(key, topology, (left, right))


def _product(key: Key, topology: Topology, tensors: tuple[Tensor, ...]) -> Tensor:
    # The key says all there is to ask of the tensors but where their memory is.
    recent = calls(topology).recent
    way = recent.get(key)
    if way is None:
        way = _way(key[0], topology, key[1], tensors)
        if len(recent) >= RECENT:
            recent.clear()
        recent[key] = way
    call, needed = way
    for each, bytes_needed in zip(tensors, needed, strict=True):
        # Storage can be resized under a tensor, as wrappers do that free parameters; kernels would read what is not there.
        if each.untyped_storage().nbytes() < bytes_needed + each.storage_offset() * each.itemsize:
            raise freed(each, bytes_needed)
    y: Tensor = call(*tensors)
    return y


def _way(kind: Kind, topology: Topology, relu: bool, tensors: tuple[Tensor, ...]) -> _Way:
    _check(kind, topology, tensors)
    topology = topology.vectors
    needed = tuple(extent(each) for each in tensors)
    target, first = current(), tensors[0]
    if target is None:
        warn_without_kernels()
    if target is None or first.dtype is not torch.float32 or 0 in (len(first), topology.grains):
        return _Way(_without_kernel(kind, topology, relu, target, first.dtype), needed)
    try:
        return _Way(_kernel(kind, topology, relu, target, tensors), needed)
    except KernelError as refused:
        warn(str(refused))
        return _Way(_of(reference, kind, topology, relu), needed)


def _check(kind: Kind, topology: Topology, tensors: tuple[Tensor, ...]) -> None:
    (out, width), (first, second, *bias) = topology.shape, tensors
    names = {"forward": ("x", "values", "bias"), "input_grad": ("grad", "values"), "value_grad": ("grad", "x")}[kind]
    check_matrix(names[0], first, width if kind == "forward" else out)
    if kind == "value_grad":
        check_matrix(names[1], second, width)
        check_pair(first, second)
        return
    check_vector(names[1], second, topology.nnz, first)
    for each in bias:
        check_vector(names[2], each, out, first)


def _kernel(kind: Kind, topology: Topology, relu: bool, target: Target, tensors: tuple[Tensor, ...]) -> Call:
    matrices = tuple(Operand.of(each) for each in tensors if each.dim() == 2)
    copied = [*(each.copied for each in matrices), *(not each.is_contiguous() for each in tensors[len(matrices) :])]

    def ready(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.contiguous() if copy else each for each, copy in zip(given, copied, strict=True))

    operation: str
    variant: tuple[bool, ...]
    if kind == "forward":
        operation, variant = "matvec" if len(tensors[0]) == 1 else "gather", (len(tensors) > 2, relu)
    elif kind == "input_grad":
        operation, variant = "scatter", ()
    else:
        operation, variant = "sample", (matrices[0].features_first,)
    product = Product.of(operation, topology, matrices[-1], target)
    call = prepared(product, matrices, variant, lambda: ready(tensors))
    return (lambda *given: call(*ready(given))) if any(copied) else call


def _without_kernel(kind: Kind, topology: Topology, relu: bool, target: Target | None, dtype: torch.dtype) -> Call:
    # Other precisions have ways of their own; the twin is left what is empty, and where it is asked for.
    if target is not None and dtype in precisions.HALVES:
        options = {"relu": relu} if kind == "forward" else {}
        return lambda left, right, *bias: precisions.rounded(_PRODUCTS[kind], left, right, topology, *bias, **options)
    return _of(precisions if target is not None and dtype is torch.float64 else reference, kind, topology, relu)


def _of(ways: Any, kind: Kind, topology: Topology, relu: bool) -> Call:
    product: Callable[..., Tensor] = getattr(ways, kind)
    options = {"relu": relu} if kind == "forward" else {}
    return lambda left, right, *bias: product(left, right, topology, *bias, **options)


_PRODUCTS: dict[Kind, Callable[..., Tensor]] = {
    "forward": forward, "input_grad": input_grad, "value_grad": value_grad
}  # fmt: skip

__all__ = ["forward", "input_grad", "value_grad"]
