"""The three products, each by the shortest way that is right: a kernel at once, torch's dispatcher, or a transform's rule.

Torch's dispatcher costs a call as much as a small layer computes. Plain tensors in plain eager code do without it;
whenever a compiler, a mode, a transform, a tracer, autocast or a profiler is at work, or a tensor's memory is not its value,
they go through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from pollard.activations import RELU, activated, read_off
from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.kernels.products import dispatch
from pollard.ops import operators, transforms
from pollard.ops.operators import MASTERS, arrays, autocast


def linear(
    x: Tensor,
    values: Tensor,
    topology: Topology,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    rows: bool = False,
) -> Tensor:
    """``x @ W.T + bias``, then the activation, if any, for the sparse W of `values` and `topology`.

    x: `(batch, in)`, any strides, of one dtype with values and bias; half precision goes with float32 values too. Sums are
    float32, rounded once. Returns `(batch, out)`, features-first in memory (strides `(1, batch)`), the layout that
    the next sparse product reads without transposing; with `rows`, row after row where that is to be had, which is what
    torch's own operations on rows want. The gradient in x lies by rows where x does, or the result. Differentiable in x, values and bias, any number of times.
    activation: "relu", "gelu", "gelu_tanh" or "silu", in the kernel, of the float32 sum. Where a gradient is wanted, or somebody
    watches, all but ReLU are torch's own behind the product: their derivatives need what went in.
    Raises InvalidInput on shapes, dtypes or devices that do not fit, and on other activations.

    >>> topology = Topology.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> linear(torch.tensor([[1.0, 10.0]]), torch.tensor([1.0, 2.0, 3.0]), topology)
    tensor([[ 1., 32.]])
    """
    watched = not direct(x, values, bias)
    if not read_off(activation) and (watched or differentiated(x, values, bias)):
        return activated(linear(x, values, topology, bias, rows=rows), activation)
    if watched:
        return _the_long_way(x, values, bias, topology, activation == RELU)
    place = _place(x)
    if _autocast(place):
        x, values = autocast(place, x), autocast(place, values, stays=MASTERS)
        bias = None if bias is None else autocast(place, bias, stays=MASTERS)
    if torch.is_grad_enabled() and read_off(activation):
        y: Tensor = _apply(x, values, bias, topology, activation == RELU, rows)
        return y
    return dispatch.forward(x, values, topology, bias, activation=activation, rows=rows)


def input_grad(grad: Tensor, values: Tensor, topology: Topology, *, rows: bool = False) -> Tensor:
    """``grad @ W``: the gradient of `linear` in x, for `grad` `(batch, out)`; `(batch, in)`, laid out as `linear` does.

    >>> topology = Topology.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> input_grad(torch.tensor([[1.0, 10.0]]), torch.tensor([1.0, 2.0, 3.0]), topology)
    tensor([[21., 30.]])
    """
    return _product("input_grad", grad, values, topology, rows=rows)


def value_grad(grad: Tensor, x: Tensor, topology: Topology, dtype: torch.dtype | None = None) -> Tensor:
    """``grad.T @ x`` at the kept weights only: the gradient of `linear` in values, `(nnz,)`, of x's dtype or float32.

    >>> topology = Topology.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> value_grad(torch.tensor([[1.0, 10.0]]), torch.tensor([[2.0, 3.0]]), topology)
    tensor([ 2., 20., 30.])
    """
    return _product("value_grad", grad, x, topology, dtype)


def _product(
    kind: operators.Kind,
    left: Tensor,
    right: Tensor,
    topology: Topology,
    dtype: torch.dtype | None = None,
    *,
    rows: bool = False,
) -> Tensor:
    if _at_once(left, right):
        if kind == "input_grad":
            return dispatch.input_grad(left, right, topology, rows=rows)
        return dispatch.value_grad(left, right, topology, dtype)
    if _transformed():
        return transforms.bilinear(kind, left, right, topology, dtype)
    return operators.dispatched(kind, left, right, *arrays(topology), dtype=dtype)


def _at_once(left: Tensor, right: Tensor, third: Tensor | None = None) -> bool:
    """Whether kernels may be called at once on these tensors: nobody at all needs to know."""
    # Autocast is the operators' affair.
    watched = torch.is_grad_enabled() or torch.compiler.is_compiling() or _watched()
    return not watched and _plain(left, right, third) and not _autocast(_place(left))


def _the_long_way(x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology, relu: bool) -> Tensor:
    """`linear` where somebody watches, or where a tensor is not what lies in its memory."""
    refuse(x)
    if not isinstance(x, torch.fx.Proxy):
        _require_one_device(x, values, bias)
    if _exported_to_onnx():
        return _in_standard_operators(x, values, bias, topology, relu)
    if not torch.compiler.is_compiling() and _transformed():
        return transforms.linear(x, values, bias, topology, relu)
    row_pointers, columns, *sizes = arrays(topology)
    y: Tensor = operators.operators().linear(x, values, row_pointers, columns, bias, *sizes, relu)
    return y


# Looked up once: every call asks all of them. Torch has no public names for most.
_autocast = torch.is_autocast_enabled
_modes, _functions = (
    torch._C._len_torch_dispatch_stack,  # noqa: SLF001
    torch._C._len_torch_function_stack,  # noqa: SLF001
)
_tracing, _profiling = torch._C._is_tracing, torch._C._autograd._profiler_enabled  # noqa: SLF001
_transforms, _keys = torch._C._are_functorch_transforms_active, torch._C._dispatch_keys  # noqa: SLF001


_set_tracing: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]  # noqa: SLF001 - torch's stubs lack it


def direct(x: Tensor, values: Tensor, bias: Tensor | None = None) -> bool:
    """Whether kernels may be called at once on these tensors: nobody but autograd and autocast needs to know."""
    return not torch.compiler.is_compiling() and not _watched() and _plain(x, values, bias)


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether autograd will want the gradient of what is made of `tensors`."""
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)


def needs_parts(x: Tensor) -> bool:
    """Whether an operator that is made of `linear` has to be taken apart: for transforms, an export to ONNX, symbols of a tracer."""
    compiling = torch.compiler.is_compiling()
    return isinstance(x, torch.fx.Proxy) or (not compiling and _transformed()) or _exported_to_onnx()


def _watched() -> bool:
    """Whether anybody but autograd and autocast wants to know of each operation."""
    return bool(_modes() or _functions() or _tracing() or _profiling() or _transformed())


def _transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is at work."""
    return bool(_transforms()) or forward_ad._current_level >= 0  # noqa: SLF001 - no public name


def _plain(left: Tensor, right: Tensor, bias: Tensor | None = None) -> bool:
    """Whether all are tensors of the CPU, or of CUDA, whose memory is their value: dense, no subclass, no bit that says otherwise."""
    if type(left) not in _TYPES or type(right) not in _TYPES:
        return False
    keys = _plain_keys(_place(left))
    return (
        _keys(left).raw_repr() in keys
        and _keys(right).raw_repr() in keys
        and (bias is None or (type(bias) in _TYPES and _keys(bias).raw_repr() in keys))
    )


def _place(x: Tensor) -> str:
    return "cuda" if x.is_cuda else "cpu"


_TYPES = (Tensor, torch.nn.Parameter)


@cache
def _plain_keys(place: str) -> frozenset[int]:
    # What torch dispatches a plain tensor by. Negation, conjugation, zero tensors, fakes, wrappers, other layouts and other
    # devices all have keys of their own. Asked for a device once there is a tensor of it: it is not begun for this.
    with torch.inference_mode():
        inference = torch.empty(0, device=place, dtype=torch.float32)
    with torch.inference_mode(mode=False):
        ordinary = torch.empty(0, device=place, dtype=torch.float32)
    return frozenset(_keys(each).raw_repr() for each in (inference, ordinary))


def refuse(x: Tensor) -> None:
    """Raises InvalidInput for an input of a kind that no product takes."""
    if isinstance(x, torch.fx.Proxy):
        return
    if not isinstance(x, Tensor) or not x.dim():
        got = "a tensor of no dimensions" if isinstance(x, Tensor) else f"an input that is a {type(x).__name__}"
        raise InvalidInput(
            got, "a tensor (..., in_features)", "Make it one: torch.as_tensor(x), and x[None] for one number."
        )
    if not x.is_nested and x.layout is torch.strided:
        return
    raise InvalidInput(
        f"an input that is {'a nested tensor' if x.is_nested else str(x.layout)}",
        "a dense tensor",
        "Convert it with .to_dense() or .to_padded_tensor(0.0), or call pollard.densify_(model) first.",
    )


def _require_one_device(x: Tensor, values: Tensor, bias: Tensor | None) -> None:
    for name, other in (("values", values), ("bias", bias)):
        if other is not None and other.device.type != x.device.type:
            raise InvalidInput(
                f"{name} on {other.device} for an input on {x.device}",
                "one device",
                "Move model and input to one with .to(device). A layer that was built on meta gets its numbers with "
                "load_state_dict(state, assign=True).",
            )


def _exported_to_onnx() -> bool:
    # Within a compiler proper nobody exports, and it need not look at this.
    exporting = torch.compiler.is_compiling() or _tracing()
    return exporting and not torch.compiler.is_dynamo_compiling() and torch.onnx.is_in_onnx_export()


@contextmanager
def _unwatched() -> Iterator[None]:
    # What is made of arrays that are there is a constant to an exporter, whatever it makes of tensors meanwhile.
    tracing = torch._C._get_tracing_state()  # noqa: SLF001 - no public name
    _set_tracing(None)
    try:
        with _disable_current_modes():
            yield
    finally:
        _set_tracing(tracing)


def _in_standard_operators(x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology, relu: bool) -> Tensor:
    """`linear` in what every ONNX runtime knows: the file holds what is kept, the runtime spreads it out."""
    out, width = topology.shape
    spread = torch.zeros(out * width, dtype=values.dtype, device=values.device)
    with _unwatched():
        positions = topology.weight_positions()
    weight = spread.scatter(0, positions, values).view(out, width)
    y = torch.nn.functional.linear(x, weight, bias)
    return y.relu() if relu else y


class _Eager(torch.autograd.Function):
    """`linear` without torch's dispatcher, the same numbers; derivatives of derivatives take the operators."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, topology: Topology, relu: bool, rows: bool
    ) -> Tensor:
        y = dispatch.forward(x, values, topology, bias, activation=RELU if relu else None, rows=rows)
        ctx.topology, ctx.relu, ctx.rows = topology, relu, rows
        ctx.save_for_backward(x, values, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, values, output = ctx.saved_tensors
        topology = ctx.topology
        # As x lies: what made it works on rows too, where it is rows, and where nothing did, its gradient would be laid out anew.
        rows = ctx.rows or x.is_contiguous()

        def gradients(grad: Tensor, x_needs: bool, values_need: bool) -> tuple[Tensor | None, Tensor | None]:
            if x_needs and values_need and _at_once(grad, x, values):
                return dispatch.gradients(grad, x, values, topology, rows=rows)
            return (
                input_grad(grad, values, topology, rows=rows) if x_needs else None,
                value_grad(grad, x, topology, values.dtype) if values_need else None,
            )

        needs = ctx.needs_input_grad[:3]
        return *operators.linear_backward(grad, output, needs, gradients, values.dtype), None, None, None


# `Function.apply` makes ready for transforms, which are not at work here: its parent's does the rest.
_apply: Any = super(torch.autograd.Function, _Eager).apply

__all__ = ["differentiated", "direct", "input_grad", "linear", "needs_parts", "refuse", "value_grad"]
