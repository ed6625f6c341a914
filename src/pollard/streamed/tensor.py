"""A weight that has no memory: a tensor of torch whose numbers are made some rows at a time, when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.formats.topology import Topology
from pollard.streamed.products import LowRank
from pollard.streamed.source import ROOM, Source, blocks

Handler = TypeVar("Handler", bound=Callable[..., Any])
# What is served: functions of torch, called as it is, and its operators, called with the first streamed tensor among their
# arguments, themselves and their arguments.
FUNCTIONS: dict[Any, Callable[..., Any]] = {}
OPERATORS: dict[Any, Callable[..., Any]] = {}


class StreamedTensor(Tensor):
    """A float tensor `(rows, ...)` without memory of its own, that knows its `source` and is multiplied some rows at a time.

    It is what `pollard.never_dense` makes of weights. Linear layers and convolutions compute with it as with any weight; gradients
    of it are streamed tensors too, of low rank. Sums, products and magnitudes, place by place, are made when rows are asked for.
    What draws numbers in place, as initialisers do, is noted and done then. Anything else is refused with an InvalidInput:
    `to_dense()` gives an ordinary tensor.

    >>> from torch.nn.functional import linear
    >>> from pollard.streamed.source import Constant
    >>> weight = StreamedTensor(Constant((2, 3), torch.float32, 0.5))
    >>> linear(torch.ones(1, 3), weight), (2 * weight).block(0, 1)
    (tensor([[1.5000, 1.5000]]), tensor([[1., 1., 1.]]))
    """

    source: Source

    @staticmethod
    def __new__(cls: type[Self], source: Source, shape: tuple[int, ...] | None = None) -> Self:
        """The matrix of `source`, or what `shape` makes of its columns."""
        host = torch.device("cpu")
        made = Tensor._make_wrapper_subclass(cls, shape or source.shape, dtype=source.dtype, device=host)  # noqa: SLF001 - as torch's documentation has it
        made.source = source
        return made

    def __init__(self, source: Source, shape: tuple[int, ...] | None = None) -> None:
        pass

    def block(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last - 1`, an ordinary tensor of two axes."""
        with torch.no_grad():
            return self.source.rows(first, last)

    def to_dense(self, *args: Any, **kwargs: Any) -> Tensor:
        """All of it, an ordinary tensor."""
        del args, kwargs
        made = torch.empty(self.source.shape, dtype=self.dtype, device="cpu")
        for first, last in blocks(self.source.shape):
            made[first:last] = self.block(first, last)
        return made.view(self.shape)

    def like(self, source: Source) -> StreamedTensor:
        """A tensor of this shape and another source."""
        return StreamedTensor(source, tuple(self.shape))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Products are taken some rows at a time, and nobody is given memory that is not there."""
        del types
        kwargs = kwargs or {}
        if func in FUNCTIONS:
            return FUNCTIONS[func](*args, **kwargs)
        # Torch's own way would make streamed tensors of all results.
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as torch's documentation has it
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """What is done place by place waits until rows are asked for."""
        del types
        kwargs = kwargs or {}
        first = next(each for each in tree_leaves((args, kwargs)) if isinstance(each, StreamedTensor))
        if func not in OPERATORS:
            raise unserved(func, first)
        return OPERATORS[func](first, func, *args, **kwargs)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StreamedTensor({tuple(self.shape)}, {self.dtype}, {self.source})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: Any = self.detach().clone()
            memo[id(self)] = _made(copied, self.requires_grad, isinstance(self, nn.Parameter))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        bare = (self.source, tuple(self.shape))
        return _restored, (*bare, self.requires_grad, isinstance(self, nn.Parameter))


def function(*functions: Any) -> Callable[[Handler], Handler]:
    """Have `functions` of torch served by what is below."""
    return _registered(FUNCTIONS, functions)


def operator(*operators: Any) -> Callable[[Handler], Handler]:
    """Have `operators` of torch served by what is below."""
    return _registered(OPERATORS, operators)


def kept_values(weight: Tensor, topology: Topology) -> Tensor:
    """The numbers `(nnz,)` of `weight` `(out, in)` that `topology` keeps, in its order; of a streamed one, some at a time.

    >>> kept_values(torch.eye(2), Topology.full((2, 2), "v2"))
    tensor([1., 0., 0., 1.])
    """
    if not isinstance(weight, StreamedTensor):
        return SparseMatrix.from_dense(weight, topology).values
    positions = topology.weight_positions()
    made = torch.empty(len(positions), dtype=weight.dtype, device="cpu")
    for part, into in zip(positions.split(ROOM), made.split(ROOM), strict=True):
        into.copy_(weight.source.at(part // topology.shape[1], part % topology.shape[1]))
    return made


def inner(left: Tensor, right: Tensor) -> Tensor:
    """The sum of `left * right`; differentiable in what a streamed gradient `right` was made of.

    >>> inner(torch.ones(2), torch.arange(2.0))
    tensor(1.)
    """
    if isinstance(left, StreamedTensor) and isinstance(right, StreamedTensor) and isinstance(right.source, LowRank):
        return right.source.along(left.source)
    return (left * right).sum()


def unserved(what: Any, tensor: Tensor) -> InvalidInput:
    """The error for what a streamed tensor cannot be asked for."""
    return InvalidInput(
        f"{what} of a weight of shape {tuple(tensor.shape)} that exists only as a stream of numbers",
        "a linear layer or a convolution over it, or an initialiser that draws each number by itself",
        "Decide what to keep with pollard.prune(model, ...) and call pollard.sparsify_(model, plan); initialise with normal_, uniform_ "
        "or what torch.nn.init makes of these; or give the layers memory, where it fits: pollard.densify_(model).",
    )


def _registered(table: dict[Any, Callable[..., Any]], keys: tuple[Any, ...]) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        table.update(dict.fromkeys(keys, handler))
        return handler

    return register


def _restored(source: Source, shape: tuple[int, ...], trained: bool, is_parameter: bool) -> Tensor:
    return _made(StreamedTensor(source, shape), trained, is_parameter)


def _made(tensor: StreamedTensor, trained: bool, is_parameter: bool) -> Tensor:
    return nn.Parameter(tensor, trained) if is_parameter else tensor.requires_grad_(trained)


__all__ = ["StreamedTensor", "function", "inner", "kept_values", "operator", "unserved"]
