"""What reads `weight` of a sparse layer, past its forward pass, gets: the dense weight, made only when it is computed with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology

if TYPE_CHECKING:

    class Kept(Protocol):
        """A layer of kept values."""

        values: nn.Parameter
        active: Tensor | None

        @property
        def topology(self) -> Topology:
            """Where they stand."""


# What a tensor says of itself; nothing is computed for it.
_SAID = frozenset(("shape", "dtype", "device", "ndim", "layout", "requires_grad", "itemsize", "nbytes", "names"))
_SAID |= {"size", "dim", "ndimension", "numel", "nelement", "element_size", "get_device", "__len__", "__hash__"}
# What reaches for memory or hooks of a parameter that does not exist.
_OF_A_PARAMETER = frozenset(
    ("data", "data_ptr", "storage", "untyped_storage", "share_memory_", "__setitem__", "__set__")
)
_OF_A_PARAMETER |= {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "backward"}


class ReadableWeight:
    """Gives a layer of kept values a `weight` to read."""

    @property
    def weight(self: Kept) -> Tensor:
        """The dense weight `(out, in)`, zero where nothing is kept: made anew by whatever computes with it, never stored.

        Its shape, dtype, device and `requires_grad` cost nothing. Gradients flow through it to `values`. What would write to
        it raises InvalidInput: the parameter is `values`. torch's fused paths stand back from it.
        """
        if torch.compiler.is_compiling():
            found: Tensor = _uncompiled(self)
            return found
        return LazyWeight(self)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch does, but for a `weight`, or what torch.nn.utils.prune would keep of it."""
        if name in {"weight", "weight_orig"}:
            raise _not_written("an assignment")
        super().register_parameter(name, param)  # type: ignore[misc]  # of nn.Module, which comes after


class LazyWeight(Tensor):
    """The dense weight of a sparse layer, which exists only while something is computed with it."""

    layer: Kept

    @staticmethod
    def __new__(cls: type[Self], layer: Kept) -> Self:
        """One number seen everywhere; what reads it past torch's functions reads NaN, and is not silently wrong."""
        values = layer.values.detach()
        seen = values.new_full((), torch.nan).expand(layer.topology.shape)
        made: Self = Tensor._make_subclass(cls, seen, layer.values.requires_grad)  # noqa: SLF001 - as torch's docs say
        made.layer = layer
        return made

    def __init__(self, layer: Kept) -> None:
        del layer
        super().__init__()

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes what nobody passes
        rows, columns = self.layer.topology.shape
        return f"LazyWeight({rows} x {columns}, {self.layer.topology.nnz} kept)"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dense_weight(self.layer).detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return dense_weight(self.layer).detach()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Computes with the dense weight; says what can be said without; refuses to write."""
        kwargs = kwargs or {}
        name = _name(func)
        if (name in _SAID or name.startswith("is_")) and args and isinstance(args[0], LazyWeight):
            with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - what torch's own documentation gives for this
                return func(*args, **kwargs)
        # By name where torch.nn.init hands it over, in a list where several are written at once.
        first = next(iter((*args, *kwargs.values())), None)
        if isinstance(first, LazyWeight) and name == "grad":
            gradient = first.layer.values.grad
            return None if gradient is None else _spread(gradient, first.layer.topology)
        written = first if isinstance(first, tuple | list) else (first,)
        if _writes(name) and any(isinstance(each, LazyWeight) for each in written):
            raise _not_written(name)
        if isinstance(kwargs.get("out"), LazyWeight):
            raise _not_written("out=")
        return func(*_dense(args), **_dense(kwargs))


def dense_weight(layer: Kept) -> Tensor:
    """The weight that the layer computes with, `(out, in)`; gradients flow through it to the values."""
    values: Tensor = layer.values if layer.active is None else straight_through(layer.values, layer.active)
    return _spread(values, layer.topology)


def straight_through(values: Tensor, active: Tensor) -> Tensor:
    """`values` where `active`, zero elsewhere; the gradient is that of `values` everywhere.

    >>> values = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> read = straight_through(values, torch.tensor([True, False]))
    >>> read.sum().backward()
    >>> read.tolist(), values.grad.tolist()
    ([1.0, 0.0], [1.0, 1.0])
    """
    return values + (torch.where(active, values, 0.0) - values).detach()


# Where values stand is worked out in numpy, which no compiler is to trace: it breaks its graph here. The public name for
# that, torch.compiler.disable, would load a compiler, 50 MB, for everybody.
_uncompiled = _disable_dynamo(dense_weight)


def _spread(values: Tensor, topology: Topology) -> Tensor:
    topology = topology.vectors
    rows, columns = topology.pattern.rows, topology.shape[1]
    grains = values.new_zeros(topology.groups * columns, rows)
    grains = grains.index_put((topology.positions(),), values.view(-1, rows))
    return grains.view(topology.groups, columns, rows).transpose(1, 2).reshape(topology.shape)


def _name(func: Callable[..., Any]) -> str:
    """What is asked for: of a property, its name; `__set__` for setting one."""
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _writes(name: str) -> bool:
    """Whether what is called so changes what it is called on, or reaches for its memory."""
    return name in _OF_A_PARAMETER or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _dense(value: Any) -> Any:
    if isinstance(value, LazyWeight):
        return dense_weight(value.layer)
    if isinstance(value, tuple | list):
        return type(value)(map(_dense, value))
    return {key: _dense(each) for key, each in value.items()} if isinstance(value, dict) else value


def _not_written(how: str) -> InvalidInput:
    return InvalidInput(
        f"{how} on the weight of a sparse layer, which is made anew from its kept values at each use",
        "reading",
        "Write to layer.values, the parameter (layer.reset_parameters() draws it anew), or densify_(model) first.",
    )


__all__ = ["LazyWeight", "ReadableWeight", "dense_weight"]
