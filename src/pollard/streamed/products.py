"""Products with matrices that come some rows at a time, and their derivatives of any order.

The gradient of a matrix is of low rank, one for each sample and place: ``dL/dW = dY^T X``. It is kept as its two factors, and is a
source itself, whose rows are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pollard.streamed.source import Cuts, Over, Places, Source, blocks, cached_rows


@dataclass(frozen=True, slots=True)
class Dense:
    """``y = x W^T``, over the last axis of x."""

    axis = -1

    def made(self, x: Tensor, rows: int) -> Tensor:
        """Room for y."""
        return x.new_empty((*x.shape[:-1], rows))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """y, of some rows of W."""
        return x @ weight.t()

    def add_back(self, dx: Tensor, dy: Tensor, weight: Tensor) -> None:
        """Adds what some rows of W give to dx."""
        dx.view(-1, dx.shape[-1]).addmm_(dy.flatten(0, -2), weight)

    def forward_few(self, x: Tensor, places: Places, values: Tensor) -> Tensor:
        """y of one sample, of some rows of W that have these values at these places, and zero elsewhere."""
        products = values.to(x.dtype) * x.flatten()[places.columns]
        return torch.segment_reduce(products, "sum", lengths=places.counts.long(), unsafe=True).view(*x.shape[:-1], -1)

    def add_back_few(self, dx: Tensor, dy: Tensor, places: Places, values: Tensor) -> None:
        """Adds to dx of one sample what these rows of W give."""
        dx.view(-1).index_add_(
            0, places.columns, values.to(dy.dtype) * dy.flatten().repeat_interleave(places.counts.long())
        )

    def gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Rows of dW, of those channels of dy."""
        return dy.flatten(0, -2).t() @ x.flatten(0, -2)


@dataclass(frozen=True, slots=True)
class Convolution:
    """The convolution of a batch with W, whose rows are output channels of `taps` each."""

    kernel: tuple[int, ...]  # input channels and taps
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    axis = 1

    def made(self, x: Tensor, rows: int) -> Tensor:
        """Room for y."""
        geometry = zip(x.shape[2:], self.kernel[1:], self.stride, self.padding, self.dilation, strict=True)
        places = [(n + 2 * around - wide * (taps - 1) - 1) // step + 1 for n, taps, step, around, wide in geometry]
        return x.new_empty((len(x), rows, *places))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """y, of some rows of W."""
        whole = weight.unflatten(1, self.kernel)
        return torch.convolution(
            x,
            whole,
            None,
            self.stride,
            self.padding,
            self.dilation,
            transposed=False,
            output_padding=self._none,
            groups=1,
        )

    def add_back(self, dx: Tensor, dy: Tensor, weight: Tensor) -> None:
        """Adds what some rows of W give to dx."""
        dx += self._backward(dy, dx, weight.unflatten(1, self.kernel), (True, False, False))[0]

    def gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Rows of dW, of those channels of dy."""
        whole = dy.new_empty((dy.shape[1], *self.kernel))
        made: Tensor = self._backward(dy, x, whole, (False, True, False))[1]
        return made.flatten(1)

    @property
    def _none(self) -> tuple[int, ...]:
        return (0,) * len(self.stride)

    def _backward(self, dy: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, self.stride, self.padding, self.dilation, False, self._none, 1, wanted
        )


Call = Dense | Convolution


class LowRank(Source):
    """The sum over `factors` of the gradients that they stand for: ``dY^T X`` of each product, with graphs where they have any."""

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype, factors: tuple[tuple[Call, Tensor, Tensor], ...]
    ) -> None:
        self.shape, self.dtype, self.factors = shape, dtype, factors

    def rows(self, first: int, last: int) -> Tensor:
        """The gradients of those rows."""
        with torch.no_grad():
            parts = (
                call.gradient(x.detach(), _channels(call, dy.detach(), first, last)) for call, x, dy in self.factors
            )
            found = next(parts)
            for part in parts:
                found = found.add_(part)
        return found

    @property
    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """Numbers `(rows,)` and `(columns,)` whose outer product it is, where it is the gradient of one product with one sample."""
        if len(self.factors) > 1 or not isinstance(self.factors[0][0], Dense):
            return None
        _, x, dy = self.factors[0]
        return (dy.detach().flatten(), x.detach().flatten()) if x.numel() == x.shape[-1] else None

    def along(self, direction: Source) -> Tensor:
        """The inner product with `direction`, differentiable where the factors are: ``sum of (X D^T) * dY``."""
        parts = [(product(Operand(call, direction), x) * dy).sum() for call, x, dy in self.factors]
        return torch.stack(parts).sum()


@dataclass(frozen=True, slots=True, eq=False)
class Scaled(Over):
    """The numbers of `source`, each times that of an outer product: ``source_ij a_i b_j``."""

    outer: LowRank

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of their product."""
        return torch.promote_types(self.source.dtype, self.outer.dtype)

    def rows(self, first: int, last: int) -> Tensor:
        """Those rows."""
        return self.source.rows(first, last) * self.outer.rows(first, last)


class Operand(NamedTuple):
    """How a matrix is multiplied, where its numbers come from, and what a gradient of it is wrapped in."""

    call: Call
    source: Source
    wrap: Callable[[Source], Tensor] | None = None

    def gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Of a product with x, whose own is dy."""
        assert self.wrap is not None
        return self.wrap(LowRank(self.source.shape, x.dtype, ((self.call, x, dy),)))


def product(by: Operand, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The product of x with the matrix, and a bias added to its channels; `weight` is what stands for the matrix in graphs."""
    made = _forward(by, x, weight)
    return made if bias is None else made + bias.view(-1, *[1] * (made.dim() - 2 if by.call.axis == 1 else 0))


def _channels(call: Call, tensor: Tensor, first: int, last: int) -> Tensor:
    return tensor.narrow(call.axis, first, last - first)


def _of_few(by: Operand, x: Tensor) -> Dense | None:
    """How to multiply what is not zero alone: one sample, with what is known to be sparse. Of more, whole rows are faster."""
    call = by.call if isinstance(by.call, Dense) and x.numel() == x.shape[-1] else None
    return call if by.source.is_sparse else None


def _cuts(by: Operand, x: Tensor) -> Cuts:
    """Rows of W at a time: as many as there is of x, or of wide rows it would be read over and over."""
    return blocks(by.source.shape, x.numel()) if _of_few(by, x) is None else cached_rows(by.source.shape)


class _Forward(torch.autograd.Function):
    """y of x and W."""

    @staticmethod
    def forward(ctx: Any, by: Operand, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.by = by
        ctx.save_for_backward(x, weight)
        y = by.call.made(x, by.source.shape[0])
        few, last = _of_few(by, x), 0
        for first, last in _cuts(by, x):
            if few is None:
                rows = by.call.forward(x, by.source.rows(first, last).to(x.dtype))
            else:
                rows = few.forward_few(x, *by.source.sparse(first, last))
            _channels(by.call, y, first, last).copy_(rows)
        _channels(by.call, y, last, by.source.shape[0]).zero_()  # what a rehearsal leaves out
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dx = _back(ctx.by, x.shape, dy, weight) if ctx.needs_input_grad[1] else None
        return None, dx, ctx.by.gradient(x, dy) if ctx.needs_input_grad[2] else None


class _Back(torch.autograd.Function):
    """dx of dy and W."""

    @staticmethod
    def forward(ctx: Any, by: Operand, shape: torch.Size, dy: Tensor, weight: Tensor | None) -> Tensor:
        ctx.by = by
        ctx.save_for_backward(dy, weight)
        dx = dy.new_zeros(shape)
        few = _of_few(by, dx)
        for first, last in _cuts(by, dx):
            part = _channels(by.call, dy, first, last)
            if few is None:
                by.call.add_back(dx, part, by.source.rows(first, last).to(dy.dtype))
            else:
                few.add_back_few(dx, part, *by.source.sparse(first, last))
        return dx

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> Any:
        dy, weight = ctx.saved_tensors
        ddy = _forward(ctx.by, ddx, weight) if ctx.needs_input_grad[2] else None
        return None, None, ddy, ctx.by.gradient(ddx, dy) if ctx.needs_input_grad[3] else None


_forward: Callable[..., Tensor] = _Forward.apply
_back: Callable[..., Tensor] = _Back.apply

__all__ = ["Call", "Convolution", "Dense", "LowRank", "Operand", "Scaled", "product"]
