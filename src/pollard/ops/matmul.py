"""The three products as torch operators: seen by autograd, `torch.compile` and `torch.export`, checked before any kernel.

Operators take the index arrays as plain tensors. The validated Topology they belong to rides on the `columns` tensor; one
that carries none, or was written to since, is validated first. Each derivative is one of the three operators again, so
that derivatives of any order exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels import derived, dispatch

PLAIN = (Tensor, torch.nn.Parameter)
CARRIED = "_pollard"  # the attribute of an index tensor that holds its topology

_library = torch.library.Library("pollard", "DEF")
_library.define(
    "linear(Tensor x, Tensor values, Tensor row_pointers, Tensor columns, Tensor? bias, "
    "SymInt in_features, int rows, bool relu) -> Tensor"
)
_library.define(
    "input_grad(Tensor grad, Tensor values, Tensor row_pointers, Tensor columns, SymInt in_features, int rows) -> Tensor"
)
_library.define(
    "value_grad(Tensor grad, Tensor x, Tensor row_pointers, Tensor columns, SymInt in_features, int rows) -> Tensor"
)


def linear(x: Tensor, values: Tensor, topology: Topology, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x @ W.T + bias``, then ReLU if asked, for the sparse W of `values` and `topology`.

    x: `(batch, in)`, any strides. Returns `(batch, out)`, features-first in memory (strides `(1, batch)`), the layout that
    the next sparse product reads without transposing. Differentiable in x, values and bias, any number of times.
    Raises InvalidInput on shapes, dtypes or devices that do not fit.

    >>> topology = Topology.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> linear(torch.tensor([[1.0, 10.0]]), torch.tensor([1.0, 2.0, 3.0]), topology)
    tensor([[ 1., 32.]])
    """
    row_pointers, columns = carriers(topology)
    return product(x, values, row_pointers, columns, bias, topology.shape[1], topology.pattern.rows, relu)


def input_grad(grad: Tensor, values: Tensor, topology: Topology) -> Tensor:
    """``grad @ W``: the gradient of `linear` in x, for `grad` `(batch, out)`; `(batch, in)`, features-first.

    >>> topology = Topology.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> input_grad(torch.tensor([[1.0, 10.0]]), torch.tensor([1.0, 2.0, 3.0]), topology)
    tensor([[21., 30.]])
    """
    row_pointers, columns = carriers(topology)
    dx: Tensor = _ops().input_grad(grad, values, row_pointers, columns, topology.shape[1], topology.pattern.rows)
    return dx


def value_grad(grad: Tensor, x: Tensor, topology: Topology) -> Tensor:
    """``grad.T @ x`` at the kept weights only: the gradient of `linear` in values, `(nnz,)`.

    >>> topology = Topology.from_mask(torch.tensor([[True, False], [True, True]]))
    >>> value_grad(torch.tensor([[1.0, 10.0]]), torch.tensor([[2.0, 3.0]]), topology)
    tensor([ 2., 20., 30.])
    """
    row_pointers, columns = carriers(topology)
    dw: Tensor = _ops().value_grad(grad, x, row_pointers, columns, topology.shape[1], topology.pattern.rows)
    return dw


def product(x: Tensor, *rest: Any) -> Tensor:
    """The operator `linear` on its own arguments, by the shorter way where nobody but autograd is watching.

    Torch's dispatcher costs a call as much as a small layer computes. Compilers, autocast and tensor subclasses go
    through it; plain eager code does not have to.
    """
    if type(x) not in PLAIN or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        y: Tensor = _ops().linear(x, *rest)
        return y
    if not torch.is_grad_enabled():
        return _linear(x, *rest)
    return _Eager.apply(x, *rest)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves `apply` untyped


def carriers(topology: Topology) -> tuple[Tensor, Tensor]:
    """The index arrays of `topology` as operators take them: `columns` carries the topology, so nothing is checked again."""
    if getattr(topology.columns, CARRIED, None) is None:
        _carry(topology.columns, topology.row_pointers, topology)
    return topology.row_pointers, topology.columns


def topology_of(row_pointers: Tensor, columns: Tensor, in_features: int, rows: int) -> Topology:
    """The validated topology of two index arrays: the one that `columns` carries, or one made now.

    Raises TopologyError where the arrays are no sparse matrix of `in_features` columns and grains of `rows` rows.
    """
    carried = getattr(columns, CARRIED, None)
    if carried is not None and carried.fits(row_pointers, columns, in_features, rows):
        return carried.topology  # type: ignore[no-any-return]
    shape = (max(len(row_pointers) - 1, 0) * rows, in_features)
    topology = Topology(shape, Pattern(rows), row_pointers, columns)
    _carry(columns, row_pointers, topology)
    return topology


def let_go(topology: Topology) -> None:
    """Free what was made for `topology` at once, where it is replaced by another; whoever still uses it makes it again.

    An index tensor and the topology that it carries hold each other: Python would free both only at its next full round.
    """
    if hasattr(topology.columns, CARRIED):
        delattr(topology.columns, CARRIED)
    derived.let_go(topology)


class _Carried:
    """A topology on the `columns` it was validated from, with the row pointers, and how often both had been written to."""

    def __init__(self, topology: Topology | None, row_pointers: Tensor | None, versions: tuple[int, int]) -> None:
        self.topology, self.row_pointers, self.versions = topology, row_pointers, versions

    def fits(self, row_pointers: Tensor, columns: Tensor, in_features: int, rows: int) -> bool:
        own, pointers = self.topology, self.row_pointers
        return (
            own is not None
            and pointers is not None
            and own.shape[1] == in_features
            and own.pattern.rows == rows
            and (pointers is row_pointers or _same_memory(pointers, row_pointers))
            and self.versions == _versions(row_pointers, columns)
        )

    def __reduce__(self) -> tuple[type[_Carried], tuple[None, None, tuple[int, int]]]:
        # Copies and files carry index arrays only: what is read back is validated again.
        return (_Carried, (None, None, (-1, -1)))


def _carry(columns: Tensor, row_pointers: Tensor, topology: Topology) -> None:
    setattr(columns, CARRIED, _Carried(topology, row_pointers, _versions(row_pointers, columns)))


def _same_memory(left: Tensor, right: Tensor) -> bool:
    return left.data_ptr() == right.data_ptr() and left.shape == right.shape and left.dtype == right.dtype


def _versions(row_pointers: Tensor, columns: Tensor) -> tuple[int, int]:
    # Inference tensors keep no count; they cannot be written to in ordinary code either.
    pointers, cols = (0 if each.is_inference() else each._version for each in (row_pointers, columns))  # noqa: SLF001 - torch's own count of writes has no other name
    return pointers, cols


def _ops() -> Any:
    return torch.ops.pollard


# -- the operators on the CPU


def _linear(
    x: Tensor,
    values: Tensor,
    row_pointers: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    in_features: int,
    rows: int,
    relu: bool,
) -> Tensor:
    _check_matrix("x", x, in_features)
    topology = topology_of(row_pointers, columns, in_features, rows)
    _check_vector("values", values, topology.nnz, x.dtype)
    if bias is not None:
        _check_vector("bias", bias, topology.shape[0], x.dtype)
    return dispatch.forward(x, values, topology, bias, relu=relu)


def _input_grad(
    grad: Tensor, values: Tensor, row_pointers: Tensor, columns: Tensor, in_features: int, rows: int
) -> Tensor:
    topology = topology_of(row_pointers, columns, in_features, rows)
    _check_matrix("grad", grad, topology.shape[0])
    _check_vector("values", values, topology.nnz, grad.dtype)
    return dispatch.input_grad(grad, values, topology)


def _value_grad(grad: Tensor, x: Tensor, row_pointers: Tensor, columns: Tensor, in_features: int, rows: int) -> Tensor:
    _check_matrix("x", x, in_features)
    topology = topology_of(row_pointers, columns, in_features, rows)
    _check_matrix("grad", grad, topology.shape[0])
    if grad.shape[0] != x.shape[0] or grad.dtype != x.dtype:
        raise InvalidInput(
            f"grad {tuple(grad.shape)} {grad.dtype} and x {tuple(x.shape)} {x.dtype}",
            "the same batch and dtype",
            "Pass the gradient of the output that this x gave.",
        )
    return dispatch.value_grad(grad, x, topology)


def _check_matrix(name: str, tensor: Tensor, features: int) -> None:
    if tensor.dim() != 2 or not tensor.is_floating_point() or tensor.shape[1] != features:
        raise InvalidInput(
            f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}",
            f"a floating-point tensor of shape (batch, {features})",
            "Flatten leading dimensions and convert the dtype; a layer's in_features must be the input's last dimension.",
        )


def _check_vector(name: str, tensor: Tensor, length: int, dtype: torch.dtype) -> None:
    if tensor.shape != (length,) or tensor.dtype != dtype:
        raise InvalidInput(
            f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}",
            f"shape ({length},), {dtype}: one number each, in the dtype of the input",
            "Convert the input or the layer with .to(dtype); a layer's in_features must be the input's last dimension.",
        )


# -- shapes without data, for compilers


def _fake_linear(
    x: Tensor,
    values: Tensor,
    row_pointers: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    in_features: int,
    rows: int,
    relu: bool,
) -> Tensor:
    return x.new_empty((row_pointers.shape[0] - 1) * rows, x.shape[0]).t()


def _fake_input_grad(
    grad: Tensor, values: Tensor, row_pointers: Tensor, columns: Tensor, in_features: int, rows: int
) -> Tensor:
    return grad.new_empty(in_features, grad.shape[0]).t()


def _fake_value_grad(
    grad: Tensor, x: Tensor, row_pointers: Tensor, columns: Tensor, in_features: int, rows: int
) -> Tensor:
    return x.new_empty(columns.shape[0] * rows)


# -- derivatives


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, row_pointers, columns, _, _, ctx.rows, ctx.relu = inputs
    ctx.save_for_backward(x, values, row_pointers, columns, output if ctx.relu else None)


def _linear_backward(ctx: Any, grad: Tensor, *, products: tuple[Any, Any] | None = None) -> tuple[Any, ...]:
    input_product, value_product = products or (_ops().input_grad, _ops().value_grad)
    x, values, row_pointers, columns, output = ctx.saved_tensors
    if ctx.relu:
        grad = grad.masked_fill(output <= 0, 0.0)
    x_needs, values_need, _, _, bias_needs, *_ = ctx.needs_input_grad
    return (
        input_product(grad, values, row_pointers, columns, x.shape[1], ctx.rows) if x_needs else None,
        value_product(grad, x, row_pointers, columns, x.shape[1], ctx.rows) if values_need else None,
        None,
        None,
        grad.sum(0) if bias_needs else None,
        None,
        None,
        None,
    )


def _input_grad_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, row_pointers, columns, _, ctx.rows = inputs
    ctx.save_for_backward(grad, values, row_pointers, columns)


def _input_grad_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    # input_grad(grad, W) = grad W, so its derivatives are upstream W^T, a forward product, and grad^T upstream.
    grad, values, row_pointers, columns = ctx.saved_tensors
    grad_needs, values_need, *_ = ctx.needs_input_grad
    return (
        _ops().linear(upstream, values, row_pointers, columns, None, upstream.shape[1], ctx.rows, False)
        if grad_needs
        else None,
        _ops().value_grad(grad, upstream, row_pointers, columns, upstream.shape[1], ctx.rows) if values_need else None,
        None,
        None,
        None,
        None,
    )


def _value_grad_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, row_pointers, columns, _, ctx.rows = inputs
    ctx.save_for_backward(grad, x, row_pointers, columns)


def _value_grad_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    # value_grad(grad, x) is linear in each; `upstream` plays the values of a matrix on the same topology.
    grad, x, row_pointers, columns = ctx.saved_tensors
    grad_needs, x_needs, *_ = ctx.needs_input_grad
    return (
        _ops().linear(x, upstream, row_pointers, columns, None, x.shape[1], ctx.rows, False) if grad_needs else None,
        _ops().input_grad(grad, upstream, row_pointers, columns, x.shape[1], ctx.rows) if x_needs else None,
        None,
        None,
        None,
        None,
    )


class _Eager(torch.autograd.Function):
    """`linear` without torch's dispatcher, the same numbers; derivatives of derivatives take the operators again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _linear(*inputs)
        _linear_context(ctx, inputs, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        products = (_ops().input_grad, _ops().value_grad) if torch.is_grad_enabled() else (_input_grad, _value_grad)
        return _linear_backward(ctx, *grads, products=products)


_OPERATORS = (
    ("linear", _linear, _fake_linear, _linear_backward, _linear_context),
    ("input_grad", _input_grad, _fake_input_grad, _input_grad_backward, _input_grad_context),
    ("value_grad", _value_grad, _fake_value_grad, _value_grad_backward, _value_grad_context),
)
for _name, _run, _fake, _backward, _context in _OPERATORS:
    _library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"pollard::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"pollard::{_name}", _backward, setup_context=_context, lib=_library)
    # Kernels compute in fp32: under autocast their operands are brought to it.
    torch.library.register_autocast(f"pollard::{_name}", "cpu", torch.float32, lib=_library)

__all__ = ["carriers", "input_grad", "let_go", "linear", "product", "topology_of", "value_grad"]
