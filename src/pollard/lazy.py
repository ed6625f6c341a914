"""A dense weight that stands for kept ones: made only when something is computed with it, and refused to who would write to it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pollard.errors import InvalidInput, WriteLost

# What a tensor says of itself; nothing is computed for it.
_SAID = frozenset(("shape", "dtype", "device", "ndim", "layout", "requires_grad", "itemsize", "nbytes", "names"))
_SAID |= {"size", "dim", "ndimension", "numel", "nelement", "element_size", "get_device", "__len__", "__hash__"}
# What reaches for memory or hooks of a parameter that does not exist.
_OF_A_PARAMETER = frozenset(
    ("data", "data_ptr", "storage", "untyped_storage", "share_memory_", "__setitem__", "__set__")
)
_OF_A_PARAMETER |= {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "backward"}
_INSTEAD = "Write to layer.values, the parameter (layer.reset_parameters() draws it anew), or densify_(model) first."
_modes, _tracing = torch._C._len_torch_dispatch_stack, torch._C._is_tracing  # noqa: SLF001 - have no other names
_transformed = torch._C._are_functorch_transforms_active  # noqa: SLF001


class LazyWeight(Tensor):
    """A dense weight of `shape`, which exists only while something is computed with it.

    parts: what it is made of, parameters or weights such as this; they say its dtype, device and whether it wants a gradient.
    make, gradient: the weight, and the gradient that is kept for it, of which there may be none.
    """

    parts: Sequence[Tensor]
    make: Callable[[], Tensor]
    gradient: Callable[[], Tensor | None]

    @staticmethod
    def __new__(
        cls: type[Self],
        shape: Sequence[int],
        parts: Sequence[Tensor],
        make: Callable[[], Tensor],
        gradient: Callable[[], Tensor | None],
    ) -> Self:
        """One number seen everywhere; what reads it past torch's functions reads NaN, and is not silently wrong."""
        seen = torch.full((), torch.nan, dtype=parts[0].dtype, device=parts[0].device).expand(shape)
        trained = any(part.requires_grad for part in parts)
        made: Self = Tensor._make_subclass(cls, seen, trained)  # noqa: SLF001 - as torch's docs say
        made.parts, made.make, made.gradient = parts, make, gradient
        return made

    def __init__(self, *_: Any) -> None:
        super().__init__()

    @property
    def kept(self) -> int:
        """Numbers that it is made of."""
        return sum(part.kept if isinstance(part, LazyWeight) else part.numel() for part in self.parts)

    def to_dense(self) -> Tensor:  # type: ignore[override]  # torch's takes what it has no use for here
        """One of one's own, to write to; gradients flow through it to the parts."""
        return self.make()

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes what nobody passes
        return f"LazyWeight({' x '.join(map(str, self.shape))}, {self.kept} kept)"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.make().detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.make().detach()

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
            return first.gradient()
        written = first if isinstance(first, tuple | list) else (first,)
        if _writes(name) and any(isinstance(each, LazyWeight) for each in written):
            raise not_written(name)
        if isinstance(kwargs.get("out"), LazyWeight):
            raise not_written("out=")
        return func(*_dense(args), **_dense(kwargs))


def not_written(how: str) -> InvalidInput:
    """What is said of a write to what is not there."""
    return InvalidInput(
        f"{how} on the weight of a sparse layer, which is made anew from its kept values at each use",
        "reading",
        _INSTEAD,
    )


def _name(func: Callable[..., Any]) -> str:
    """What is asked for: of a property, its name; `__set__` for setting one."""
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _writes(name: str) -> bool:
    """Whether what is called so changes what it is called on, or reaches for its memory."""
    return name in _OF_A_PARAMETER or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _dense(value: Any) -> Any:
    if isinstance(value, LazyWeight):
        made = value.make()
        tell_writes(made)
        return made
    if isinstance(value, tuple | list):
        return type(value)(map(_dense, value))
    return {key: _dense(each) for key, each in value.items()} if isinstance(value, dict) else value


def tell_writes(made: Tensor) -> None:
    """Have WriteLost warned when the memory of `made` goes, if anybody wrote to it through a view, which of a dense layer is its weight.

    Compilers, tracers and transforms, who write to nothing of the user's, are left alone.
    """
    if type(made) is not Tensor or made.is_inference() or _tracing() or _modes() or _transformed():
        return
    # The counter of writes that all views share, and nothing of the memory.
    counter = made.detach()
    counter.data = made.new_empty(0)
    weakref.finalize(made.untyped_storage(), _tell, counter, counter._version).atexit = False  # noqa: SLF001 - autograd's own


def _tell(counter: Tensor, version: int) -> None:
    if counter._version != version:  # noqa: SLF001
        message = (
            "What was written to a view of the weight of a sparse layer is lost: it is made anew from its kept values at each "
            f"use. {_INSTEAD} Where a copy is meant, clone() it."
        )
        warnings.warn(message, WriteLost, stacklevel=3)


__all__ = ["LazyWeight", "not_written", "tell_writes"]
