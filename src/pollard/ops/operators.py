"""The three products as torch operators: seen by autocast, compilers, exporters, tracers, profilers and FLOP counters.

Operators take the index arrays as plain tensors: columns as uint16, int32, int64, or int16 that holds the bits of uint16.
Those of a Topology are known to be valid; others are validated, copied and remembered. Each derivative is one of the three operators again, so that derivatives of any order exist.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary

from pollard.activations import RELU
from pollard.errors import TopologyError
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.products import dispatch

_library = torch.library.Library("pollard", "DEF")
# A CUDA graph would go on with the topology whose arrays the host read as it was captured: compilers leave operators out of theirs.
# Torch 2.8 has no name for that, and captures nothing that reads from the host's memory.
TAGS = tuple(filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)]))
_library.define(
    "linear(Tensor x, Tensor values, Tensor row_pointers, Tensor columns, Tensor? bias, "
    "SymInt in_features, str pattern, bool relu) -> Tensor",
    tags=TAGS,
)
_library.define(
    "input_grad(Tensor grad, Tensor values, Tensor row_pointers, Tensor columns, SymInt in_features, str pattern) -> Tensor",
    tags=TAGS,
)
_library.define(
    "value_grad(Tensor grad, Tensor x, Tensor row_pointers, Tensor columns, SymInt in_features, str pattern, "
    "ScalarType? dtype=None) -> Tensor",
    tags=TAGS,
)


def operators() -> Any:
    """`torch.ops.pollard`: linear, input_grad, value_grad."""
    return torch.ops.pollard


Kind = Literal["linear", "input_grad", "value_grad"]

# With L(x, w) = x W^T, G(g, w) = g W and V(g, x) = (g^T x) at the kept weights, all linear in both: from the gradient u of a
# product of a and b to the gradients in a and in b, as kinds and what they are of.
ADJOINTS: dict[Kind, Callable[[Tensor, Tensor, Tensor], tuple[tuple[Kind, Tensor, Tensor], ...]]] = {
    "linear": lambda u, x, w: (("input_grad", u, w), ("value_grad", u, x)),
    "input_grad": lambda u, g, w: (("linear", u, w), ("value_grad", g, u)),
    "value_grad": lambda u, g, x: (("linear", x, u), ("input_grad", g, u)),
}


def dispatched(kind: Kind, left: Tensor, right: Tensor, *where: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The product of that kind by torch's dispatcher, without bias and ReLU; where: what `arrays` gives, dtype: of values."""
    row_pointers, columns, *sizes = where
    rest = (None, *sizes, False) if kind == "linear" else (*sizes, *([dtype] * (kind == "value_grad")))
    product: Tensor = getattr(operators(), kind)(left, right, row_pointers, columns, *rest)
    return product


def arrays(topology: Topology) -> tuple[Tensor, Tensor, int, str]:
    """`topology` as operators take it: row pointers, columns, columns of the weight, name of the pattern."""
    if not torch.compiler.is_dynamo_compiling():
        know(topology)
    return *topology.handed, topology.shape[1], str(topology.pattern)


def know(topology: Topology) -> None:
    """Let operators know the arrays of `topology` again: what was compiled hands on nothing else."""
    columns = topology.handed.columns
    if _KNOWN not in columns.__dict__:
        # Weakly: the topology holds this tensor already.
        columns.__dict__[_KNOWN] = _Known(weakref.ref(topology))


def topology_of(row_pointers: Tensor, columns: Tensor, in_features: int, pattern: str) -> Topology:
    """The validated topology of two index arrays: the one that they belong to, or one made of copies of them.

    Raises TopologyError where the arrays are no sparse matrix of `in_features` columns under that pattern.
    """
    kind = Pattern.parse(pattern)
    known: _Known | None = columns.__dict__.get(_KNOWN)
    found = None if known is None else known.topology(row_pointers, columns)
    if found is not None and found.shape[1] == in_features and found.pattern == kind:
        return found
    shape = (max(len(row_pointers) - 1, 0) * kind.rows, in_features)
    made = Topology(shape, kind, row_pointers, _unsigned(columns))
    columns.__dict__[_KNOWN] = _Known(lambda: made, (row_pointers, writes(row_pointers), writes(columns)))
    return made


# Where values stand that were moved to another topology than they were made with.
_moved = WeakTensorKeyDictionary()


def tell_moved(values: Tensor, topology: Topology) -> None:
    """From now on `values`, a parameter, stands as `topology` says: what was traced before hands on where it stood, and is refused."""
    _moved[values] = topology


def standing(values: Tensor, row_pointers: Tensor, columns: Tensor, in_features: int, pattern: str) -> Topology:
    """As `topology_of`; TopologyError where `values` has moved to another topology."""
    found = topology_of(row_pointers, columns, in_features, pattern)
    now: Topology | None = _moved.get(values) if _moved else None
    if now is not None and now is not found and not torch.equal(now.signature, found.signature):
        raise TopologyError(
            "values of a sparse layer with the topology that it had before: what was traced or exported keeps that of its moment",
            f"the topology that the layer has now, {now!r}",
            "Trace or export the model again after its topology has moved, or what a trace calls, copy.deepcopy(model), beforehand.",
        )
    return found


_KNOWN = "_pollard"  # the attribute of an array of columns that says which topology it belongs to


class _Known:
    """The topology that an array of columns belongs to, or was copied to, and then `taken`: row pointers, writes to both."""

    def __init__(self, find: Callable[[], Topology | None], taken: tuple[Tensor, int, int] | None = None) -> None:
        self._find, self._taken = find, taken

    def topology(self, row_pointers: Tensor, columns: Tensor) -> Topology | None:
        """The topology, if these are still its arrays or still what was taken."""
        found = self._find()
        if found is None:
            return None
        if self._taken is None:
            # Attributes are copied with a tensor: only the arrays themselves are what nobody writes to.
            same = all(map(_same_memory, found.handed, (row_pointers, columns)))
        elif row_pointers.is_inference() or columns.is_inference():
            pairs = zip(found.indices, (row_pointers, _unsigned(columns)), strict=True)
            same = all(torch.equal(held.to(given.dtype), given) for held, given in pairs)
        else:
            same = self._taken[0] is row_pointers and self._taken[1:] == (writes(row_pointers), writes(columns))
        return found if same else None

    def __reduce__(self) -> tuple[type[_Known], tuple[Callable[[], None]]]:
        # Copies and files carry arrays only: what is read back is validated again.
        return (_Known, (_nothing,))


def _nothing() -> None:
    return None


def _unsigned(columns: Tensor) -> Tensor:
    return columns.view(torch.uint16) if columns.dtype is torch.int16 else columns


def _same_memory(left: Tensor, right: Tensor) -> bool:
    return left is right or (
        left.data_ptr() == right.data_ptr() and left.shape == right.shape and left.dtype == right.dtype
    )


def writes(array: Tensor | None) -> int:
    """How often `array` has been written to, as torch counts; -1 for inference tensors, which keep no count, and for None."""
    return -1 if array is None or array.is_inference() else array._version  # noqa: SLF001 - torch's own count of writes has no other name


# -- on any device


def _linear(
    x: Tensor,
    values: Tensor,
    row_pointers: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    in_features: int,
    pattern: str,
    relu: bool,
) -> Tensor:
    topology = standing(values, row_pointers, columns, in_features, pattern)
    return dispatch.forward(x, values, topology, bias, activation=RELU if relu else None)


def _input_grad(
    grad: Tensor, values: Tensor, row_pointers: Tensor, columns: Tensor, in_features: int, pattern: str
) -> Tensor:
    return dispatch.input_grad(grad, values, topology_of(row_pointers, columns, in_features, pattern))


def _value_grad(
    grad: Tensor,
    x: Tensor,
    row_pointers: Tensor,
    columns: Tensor,
    in_features: int,
    pattern: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return dispatch.value_grad(grad, x, topology_of(row_pointers, columns, in_features, pattern), dtype)


# -- shapes without data, for compilers


def _fake_linear(
    x: Tensor,
    values: Tensor,
    row_pointers: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    in_features: int,
    pattern: str,
    relu: bool,
) -> Tensor:
    return _fake_output(x, (row_pointers.shape[0] - 1) * Pattern.parse(pattern).rows)


def _fake_input_grad(
    grad: Tensor, values: Tensor, row_pointers: Tensor, columns: Tensor, in_features: int, pattern: str
) -> Tensor:
    return _fake_output(grad, in_features)


def _fake_value_grad(
    grad: Tensor,
    x: Tensor,
    row_pointers: Tensor,
    columns: Tensor,
    in_features: int,
    pattern: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return x.new_empty(columns.shape[0] * Pattern.parse(pattern).size, dtype=dtype or x.dtype)


def _fake_output(like: Tensor, features: int) -> Tensor:
    return like.new_empty_strided((like.shape[0], features), (1, like.shape[0]))


# -- derivatives


def linear_backward(
    grad: Tensor, output: Tensor | None, needs: tuple[bool, ...], gradients: Gradients, values: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients in x, values and bias that are needed; output: of a fused ReLU. gradients: what makes the first two.

    grad: `(batch, out)`, or of images `(samples, out, rows, columns)`.
    """
    if output is not None:
        grad = grad.masked_fill(output <= 0, 0.0)
    x_needs, values_need, bias_needs = needs
    dx, dvalues = gradients(grad, x_needs, values_need)
    return dx, dvalues, grad.sum((0, *range(2, grad.dim())), dtype=values) if bias_needs else None


# Of the gradient of a product, the gradients in x and values, each if it is needed.
Gradients = Callable[[Tensor, bool, bool], tuple[Tensor | None, Tensor | None]]


def apart(in_x: Callable[[Tensor], Tensor], in_values: Callable[[Tensor], Tensor]) -> Gradients:
    """The gradients in x and values by a product each."""
    return lambda grad, x_needs, values_need: (
        in_x(grad) if x_needs else None,
        in_values(grad) if values_need else None,
    )


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, row_pointers, columns, _, _, ctx.pattern, ctx.relu = inputs
    ctx.save_for_backward(x, values, row_pointers, columns, output if ctx.relu else None)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, values, row_pointers, columns, output = ctx.saved_tensors
    rest = (row_pointers, columns, x.shape[1], ctx.pattern)
    x_needs, values_need, _, _, bias_needs, *_ = ctx.needs_input_grad
    gradients = apart(
        lambda u: operators().input_grad(u, values, *rest),
        lambda u: operators().value_grad(u, x, *rest, values.dtype),
    )
    dx, dvalues, dbias = linear_backward(grad, output, (x_needs, values_need, bias_needs), gradients, values.dtype)
    return dx, dvalues, None, None, dbias, None, None, None


def _pair_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    left, right, row_pointers, columns, *sizes = inputs
    ctx.sizes = sizes[:2]
    ctx.save_for_backward(left, right, row_pointers, columns)


def _pair_backward(kind: Kind) -> Callable[[Any, Tensor], tuple[Any, ...]]:
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        left, right, *both = ctx.saved_tensors
        adjoints = ADJOINTS[kind](upstream, left, right)
        found = [
            dispatched(*each, *both, *ctx.sizes, dtype=of.dtype) if need else None
            for each, of, need in zip(adjoints, (left, right), ctx.needs_input_grad, strict=False)
        ]
        return *found, *(None,) * (len(ctx.needs_input_grad) - 2)

    return backward


# -- autocast

_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def autocast(device: str, tensor: Tensor, *, stays: tuple[torch.dtype, ...] = ()) -> Tensor:
    """`tensor` as autocast on `device` wants it, unless its dtype `stays`, as double precision does in any case."""
    if not tensor.is_floating_point() or tensor.device.type != device or tensor.dtype in (torch.float64, *stays):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


# Products take values of float32 beside half precision: what would be lost by rounding them is not.
MASTERS = (torch.float32,)


def _cast(name: str, device: str, left: Tensor, right: Tensor, *rest: Any, **named: Any) -> Tensor:
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _AUTOCAST[device]))  # noqa: SLF001 - no public name
    stays = () if name.endswith("value_grad") else MASTERS
    left, right = autocast(device, left), autocast(device, right, stays=stays)
    # What makes outputs has a bias behind the two arrays.
    if not name.endswith("_grad") and rest[2] is not None:
        rest = (*rest[:2], autocast(device, rest[2], stays=stays), *rest[3:])
    with torch._C._ExcludeDispatchKeyGuard(key):  # noqa: SLF001
        product: Tensor = getattr(operators(), name)(left, right, *rest, **named)
        return product


def register(library: Any, name: str, run: Any, fake: Any, derivative: tuple[Any, Any]) -> None:
    """Give the operator `name` of `library` what computes it, its shapes without data, and its derivative and what that keeps."""
    backward, context = derivative
    library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pollard::{name}", fake, lib=library)
    torch.library.register_autograd(f"pollard::{name}", backward, setup_context=context, lib=library)
    for device, key in _AUTOCAST.items():
        library.impl(name, partial(_cast, name, device), key)


register(_library, "linear", _linear, _fake_linear, (_linear_backward, _linear_context))
register(_library, "input_grad", _input_grad, _fake_input_grad, (_pair_backward("input_grad"), _pair_context))
register(_library, "value_grad", _value_grad, _fake_value_grad, (_pair_backward("value_grad"), _pair_context))


@register_flop_formula([operators().linear, operators().input_grad, operators().value_grad])
def _flops(left: torch.Size, _: torch.Size, pointers: torch.Size, columns: torch.Size, *rest: Any, **named: Any) -> int:
    """A multiplication and an addition for each kept weight and sample."""
    pattern = next(each for each in rest if isinstance(each, str))
    return 2 * left[0] * columns[0] * Pattern.parse(pattern).size


__all__ = [
    "MASTERS",
    "TAGS",
    "apart",
    "arrays",
    "autocast",
    "know",
    "linear_backward",
    "operators",
    "register",
    "standing",
    "tell_moved",
    "topology_of",
    "writes",
]
