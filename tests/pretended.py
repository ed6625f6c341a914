"""A device that is not the CPU, on machines that have no other: its tensors hold one of the CPU's, and mix with none.

torch dispatches them as it does those of any device: factories by its key, operators by the class. What would fail on a GPU,
an operand on another device or memory read past torch, fails here.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
# What takes tensors of two devices on a GPU too.
_ACROSS = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}


class Pretended(Tensor):
    __slots__ = ("held",)  # no attribute, which copies of parameters take along

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: Pretended) -> None:
        Tensor.data.__set__(self, other)
        self.held = other.held

    def __repr__(self) -> str:
        return f"Pretended({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = Pretended(self.held.clone()).requires_grad_(self.requires_grad)
        return torch.nn.Parameter(made) if isinstance(self, torch.nn.Parameter) else made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pollard":
            # As torch's dispatcher would, had the tensors no class of their own.
            return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
        return _on_device(func, args, dict(kwargs or {}))


def _on_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    strangers = [each for each in tensors if not isinstance(each, Pretended) and each.dim()]
    if strangers and name not in _ACROSS:
        raise RuntimeError(f"{func}: expected all tensors on {DEVICE}, one is on {strangers[0].device}")
    device = kwargs.get("device")
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    off = device is not None and torch.device(device).type != NAME
    inner = pytree.tree_map_only(Pretended, lambda each: each.held, (args, kwargs))
    out = func(*inner[0], **inner[1])
    if (name.endswith("_") and not name.startswith("_")) or name == "_index_put_impl_":
        return args[0]
    if off or (name == "copy_" and not isinstance(args[0], Pretended)):
        return out
    return pytree.tree_map_only(Tensor, Pretended, out)


def _made(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _on_device(func, args, kwargs)


_library = torch.library.Library("_", "IMPL")
_library.fallback(_made, "PrivateUse1")
