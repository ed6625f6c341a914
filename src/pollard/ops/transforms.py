"""The products under torch.func's transforms and forward-mode differentiation: what is linear in two tensors, thrice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pollard.formats.topology import Topology
from pollard.ops.operators import ADJOINTS, Kind, arrays, dispatched


def bilinear(kind: Kind, left: Tensor, right: Tensor, topology: Topology, dtype: torch.dtype | None = None) -> Tensor:
    """The product of that kind, which any transform may go through: grad, vmap, jvp, and each within the other.

    dtype: of values that are its result.

    >>> topology = Topology.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> x, values = torch.tensor([[1.0, 10.0]]), torch.tensor([1.0, 2.0, 3.0])
    >>> torch.func.grad(lambda w: bilinear("linear", x, w, topology).sum())(values)
    tensor([ 1.,  1., 10.])
    """
    product: Tensor = _Bilinear.apply(kind, left, right, topology, dtype)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return product


def linear(x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology, relu: bool) -> Tensor:
    """`x W^T + bias`, then ReLU if asked; bias and ReLU are torch's own."""
    y = bilinear("linear", x, values, topology)
    y = y if bias is None else y + bias
    return y.relu() if relu else y


class _Bilinear(torch.autograd.Function):
    @staticmethod
    def forward(kind: Kind, left: Tensor, right: Tensor, topology: Topology, dtype: torch.dtype | None) -> Tensor:
        return dispatched(kind, left, right, *arrays(topology), dtype=dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.kind, left, right, ctx.topology, ctx.dtype = inputs
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        adjoints = ADJOINTS[ctx.kind](*grads, *ctx.saved_tensors)
        found = [
            bilinear(*each, ctx.topology, of.dtype) if need else None
            for each, of, need in zip(adjoints, ctx.saved_tensors, ctx.needs_input_grad[1:3], strict=True)
        ]
        return None, *found, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _, d_left, d_right, *_ = tangents
        left, right = ctx.saved_tensors
        parts: list[Tensor] = []
        if d_left is not None:
            parts.append(bilinear(ctx.kind, d_left, right, ctx.topology, ctx.dtype))
        if d_right is not None:
            parts.append(bilinear(ctx.kind, left, d_right, ctx.topology, ctx.dtype))
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        del info
        kind, left, right, topology, dtype = inputs
        _, of_left, of_right, *_ = in_dims
        return batched(
            lambda a, b: bilinear(kind, a, b, topology, dtype),
            (left, of_left),
            (right, of_right),
            flatten=kind != "value_grad",
        ), 0


def batched(
    product: Callable[[Tensor, Tensor], Tensor], left: tuple[Tensor, Any], right: tuple[Tensor, Any], *, flatten: bool
) -> Tensor:
    """`product` of each entry along the dimensions that `left` and `right` come with (None: the same for all), stacked.

    flatten: entries of `left` alone may lie side by side in one product, since its rows do not mix.
    """
    (a, of_a), (b, of_b) = left, right
    a = a if of_a is None else a.movedim(of_a, 0)
    b = b if of_b is None else b.movedim(of_b, 0)
    if flatten and of_b is None:
        flat = product(a.reshape(-1, a.shape[-1]), b)
        return flat.reshape(*a.shape[:2], flat.shape[-1])
    count = len(a) if of_a is not None else len(b)
    pairs = ((a if of_a is None else a[each], b if of_b is None else b[each]) for each in range(count))
    return torch.stack([product(*pair) for pair in pairs])


def _vmap_linear(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
    del info
    x, values, row_pointers, columns, bias, *sizes, relu = inputs

    def product(a: Tensor, b: Tensor) -> Tensor:
        return dispatched("linear", a, b, row_pointers, columns, *sizes)

    y = batched(product, (x, in_dims[0]), (values, in_dims[1]), flatten=True)
    if bias is not None:
        y = y + (bias if in_dims[4] is None else bias.movedim(in_dims[4], 0)[:, None])
    return (y.relu() if relu else y), 0


def _vmap_of(kind: Kind) -> Callable[..., tuple[Tensor, int]]:
    def rule(info: Any, in_dims: tuple[Any, ...], left: Tensor, right: Tensor, *rest: Any) -> tuple[Tensor, int]:
        del info
        pairs = ((left, in_dims[0]), (right, in_dims[1]))
        *where, dtype = (*rest, None) if kind == "input_grad" else rest
        product = partial(dispatched, kind, dtype=dtype)
        return batched(lambda a, b: product(a, b, *where), *pairs, flatten=kind != "value_grad"), 0

    return rule


torch.library.register_vmap("pollard::linear", _vmap_linear)
torch.library.register_vmap("pollard::input_grad", _vmap_of("input_grad"))
torch.library.register_vmap("pollard::value_grad", _vmap_of("value_grad"))

__all__ = ["bilinear", "linear"]
