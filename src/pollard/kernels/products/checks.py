"""What tensors must be before a kernel may read them: kernels check nothing themselves."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pollard.errors import InvalidInput
from pollard.kernels.products.task import HALVES


def check_matrix(name: str, tensor: Tensor, features: int) -> None:
    """Raises InvalidInput unless `tensor` is `(batch, features)` and floating-point."""
    if tensor.dim() != 2 or tensor.shape[1] != features or not tensor.is_floating_point():
        raise InvalidInput(
            f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}",
            f"a floating-point tensor of shape (batch, {features})",
            "Flatten leading dimensions and convert the dtype; a layer's in_features must be the input's last dimension.",
        )


def check_dtype(name: str, dtype: torch.dtype, like: Tensor) -> None:
    """Raises InvalidInput unless `dtype` is that of `like`, or float32 where that is half precision."""
    if dtype == like.dtype or (dtype == torch.float32 and like.dtype in HALVES):
        return
    raise InvalidInput(
        f"{name} of {dtype} beside {like.dtype}",
        f"{like.dtype}" + (", or float32" if like.dtype in HALVES else ""),
        "Convert the input or the layer with .to(dtype).",
    )


def check_vector(name: str, tensor: Tensor, length: int, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InvalidInput unless `tensor` is `(length,)`, of `dtype` and on `device`."""
    if tensor.shape != (length,) or tensor.dtype != dtype or tensor.device != device:
        raise InvalidInput(
            f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}",
            f"shape ({length},), {dtype}, on {device}: one number each",
            "Convert the input or the layer with .to(dtype), or .to(device); a layer's in_features must be the input's last dimension.",
        )


def check_pair(grad: Tensor, x: Tensor) -> None:
    """Raises InvalidInput unless both are of one batch, dtype and device."""
    if grad.shape[0] != x.shape[0] or grad.dtype != x.dtype or grad.device != x.device:
        raise InvalidInput(
            f"grad {tuple(grad.shape)} {grad.dtype} on {grad.device} and x {tuple(x.shape)} {x.dtype} on {x.device}",
            "the same batch, dtype and device",
            "Pass the gradient of the output that this x gave.",
        )


def extent(tensor: Tensor) -> int:
    """The bytes that `tensor` takes from its first number to its last."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def require_there(tensors: Iterable[Tensor], needed: Iterable[int]) -> None:
    """Raises InvalidInput for a tensor with less memory than the bytes it `needed` when its call was made.

    Storage can be resized under a tensor, as wrappers do that free parameters; kernels would read what is not there.
    """
    for tensor, size in zip(tensors, needed, strict=False):
        held, least = tensor.untyped_storage().nbytes(), size + tensor.storage_offset() * tensor.itemsize
        # A part of an empty tensor begins anywhere.
        if held < least and size:
            raise InvalidInput(
                f"a tensor of shape {tuple(tensor.shape)} with {held} bytes of memory",
                f"{least} bytes",
                "Its storage was resized or freed: bring its numbers back before the product.",
            )
