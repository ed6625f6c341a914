"""Operators of torch that streamed tensors are given to: what waits until rows are asked for, and what draws."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pollard.streamed.drawn import DRAWS, STEPS, Drawn
from pollard.streamed.products import LowRank, Scaled
from pollard.streamed.source import Constant, Mapped, Masked, Part, blocks
from pollard.streamed.tensor import StreamedTensor, operator, unserved

aten = torch.ops.aten


@operator(aten.alias.default, aten.detach.default, aten.lift_fresh.default)
def _itself(first: StreamedTensor, func: Any, *args: Any) -> StreamedTensor:
    del func, args
    return first.like(first.source)


@operator(aten.clone.default)
def _clone(first: StreamedTensor, func: Any, *args: Any, **kwargs: Any) -> StreamedTensor:
    del func, args, kwargs
    return first.like(first.source.copied() if isinstance(first.source, Drawn) else first.source)


@operator(aten.view.default, aten._unsafe_view.default, aten.reshape.default)  # noqa: SLF001 - its name in torch
def _view(first: StreamedTensor, func: Any, tensor: Tensor, shape: list[int]) -> StreamedTensor:
    del func, tensor
    known = math.prod(size for size in shape if size != -1)
    whole = tuple(size if size != -1 else first.numel() // max(1, known) for size in shape)
    if len(whole) < 2 or whole[0] != first.source.shape[0]:
        raise unserved(f"a view of shape {whole}", first)
    return StreamedTensor(first.source, whole)


@operator(aten.split.Tensor)
def _split(first: StreamedTensor, func: Any, tensor: Tensor, size: int, dim: int = 0) -> list[StreamedTensor]:
    del func, tensor
    if dim != 0:
        raise unserved(f"a split along axis {dim}", first)
    rows, columns = first.source.shape
    if size >= rows:
        return [first.like(first.source)]
    cuts = [(start, min(rows, start + size)) for start in range(0, rows, size)]
    parts = [Part((last - start, columns), first.dtype, first.source, start) for start, last in cuts]
    return [StreamedTensor(part, (part.shape[0], *first.shape[1:])) for part in parts]


@operator(
    aten.abs.default, aten.add.Tensor, aten.div.Tensor, aten.lerp.Scalar, aten.mul.Tensor, aten.neg.default, aten.pow.Tensor_Scalar,
    aten.sub.Tensor, aten.where.self, aten.where.ScalarOther,
)  # fmt: skip
def _place_by_place(first: StreamedTensor, func: Any, *args: Any) -> StreamedTensor:
    for each in args:
        fits = (
            each.shape == first.shape
            if isinstance(each, StreamedTensor)
            else not isinstance(each, Tensor) or not each.dim()
        )
        if not fits:
            raise unserved(func, first)
    simple = _SIMPLE[func](*args) if func in _SIMPLE else None
    if simple is not None:
        return first.like(simple)
    sources = [each.source if isinstance(each, StreamedTensor) else each for each in args]
    dtype = reduce(torch.promote_types, [each.dtype for each in args if isinstance(each, StreamedTensor)])
    return first.like(Mapped(first.source.shape, dtype, func, sources, keeps_zero=func in _KEEPING_ZERO))


def _added(*args: Any) -> LowRank | None:
    """The sum of two gradients, as autograd adds up those of a weight that is used more than once."""
    sources = [each.source for each in args if isinstance(each, StreamedTensor) and isinstance(each.source, LowRank)]
    if len(args) != 2 or len(sources) != 2:
        return None
    one, other = sources
    return LowRank(one.shape, one.dtype, (*one.factors, *other.factors))


def _magnitude(tensor: Tensor) -> LowRank | None:
    """That of an outer product, which is one too."""
    source = tensor.source if isinstance(tensor, StreamedTensor) else None
    if not isinstance(source, LowRank) or source.vectors is None:
        return None
    ((call, x, dy),) = source.factors
    return LowRank(source.shape, source.dtype, ((call, x.detach().abs(), dy.detach().abs()),))


def _scaled(*args: Any) -> Scaled | None:
    """The product with an outer product."""
    sources = [each.source for each in args if isinstance(each, StreamedTensor)]
    for one, other in (sources, sources[::-1]) if len(sources) == 2 else ():
        if isinstance(other, LowRank) and other.vectors is not None:
            return Scaled(one, other)
    return None


def _masked(mask: Any, kept: Any, dropped: Any) -> Masked | None:
    """What a mask keeps of a tensor, and zero elsewhere."""
    both = isinstance(mask, StreamedTensor) and isinstance(kept, StreamedTensor)
    zero = not isinstance(dropped, StreamedTensor) and float(dropped) == 0.0
    return Masked(kept.source, mask.source) if both and zero else None


_KEEPING_ZERO = {aten.abs.default, aten.neg.default}
# Operators whose result may be told in fewer words than that it is theirs.
_SIMPLE: dict[Any, Any] = {
    aten.abs.default: _magnitude,
    aten.add.Tensor: _added,
    aten.mul.Tensor: _scaled,
    aten.where.self: _masked,
    aten.where.ScalarOther: _masked,
}


@operator(aten._to_copy.default)  # noqa: SLF001 - its name in torch
def _to_copy(
    first: StreamedTensor, func: Any, tensor: Tensor, *, dtype: torch.dtype | None = None, device: Any = None, **_: Any
) -> Tensor:
    del func, tensor
    dtype, place = dtype or first.dtype, torch.device(device or "cpu").type
    if place == "meta":
        return torch.empty(first.shape, dtype=dtype, device=place)
    if place != "cpu":
        raise unserved(f"a copy on {place}", first)
    source = first.source
    if dtype == source.dtype:
        return first.like(source)
    # What was drawn can be drawn further, in another precision too, unless it was rounded to half.
    if isinstance(source, Drawn) and source.dtype.itemsize > 2:
        return first.like(source.copied(dtype))
    return first.like(Mapped(source.shape, dtype, Tensor.to, (source, dtype), keeps_zero=True))


@operator(aten.zeros_like.default)
def _zeros_like(
    first: StreamedTensor, func: Any, tensor: Tensor, *, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    del func, tensor
    return first.like(Constant(first.source.shape, dtype or first.dtype, 0.0))


@operator(aten.amax.default)
def _amax(first: StreamedTensor, func: Any, tensor: Tensor, dim: tuple[int, ...] = ()) -> Tensor:
    del func, tensor
    if len(dim) not in {0, first.dim()}:
        raise unserved(f"a maximum over {tuple(dim)}", first)
    found = torch.empty(first.source.shape[0], dtype=first.dtype, device="cpu")
    for begin, end in blocks(first.source.shape):
        found[begin:end] = first.block(begin, end).amax()
    return found.amax()


@operator(aten.any.default)
def _any(first: StreamedTensor, func: Any, tensor: Tensor) -> Tensor:
    del func, tensor
    found = any(bool(first.block(*each).any()) for each in blocks(first.source.shape))
    return torch.full((), found, dtype=torch.bool, device="cpu")


@operator(aten.sum.dim_IntList)
def _sum(first: StreamedTensor, func: Any, tensor: Tensor, dim: tuple[int, ...]) -> Tensor:
    del func, tensor
    if first.dim() != 2 or tuple(dim) not in {(1,), (-1,)}:
        raise unserved(f"a sum over {tuple(dim)}", first)
    # Written where there is room, not kept in a list: each would lie where a block was, and the next would find no room there.
    found = torch.empty(first.source.shape[0], dtype=first.dtype, device="cpu")
    for begin, end in blocks(first.source.shape):
        found[begin:end] = first.block(begin, end).sum(1)
    return found


@operator(*DRAWS, *STEPS)
def _drawn(first: StreamedTensor, func: Any, *args: Any, **kwargs: Any) -> StreamedTensor:
    others = args[1:]
    plain = not any(isinstance(each, StreamedTensor) or (isinstance(each, Tensor) and each.dim()) for each in others)
    if not isinstance(args[0], StreamedTensor) or not plain or not isinstance(first.source, Drawn):
        raise unserved(func, first)
    first.source.note(func, others, {key: value for key, value in kwargs.items() if key != "generator"})
    return first


@operator(aten.copy_.default)
def _copy(
    first: StreamedTensor, func: Any, target: Tensor, other: Tensor, non_blocking: bool = False
) -> StreamedTensor:
    del target, non_blocking
    source = other.source if isinstance(other, StreamedTensor) else None
    fits = (first.shape, first.dtype) == (other.shape, other.dtype)
    if not fits or not isinstance(first.source, Drawn) or not isinstance(source, Drawn):
        raise unserved(func, first)
    first.source.become(source)
    return first


__all__: list[str] = []
