"""Convolutions and transposed ones, of 1 to 3 dimensions: a linear layer of channels x taps, over unfolded inputs.

Where the layer does not convolve them itself, inputs are unfolded some samples at a time, and again in the backward pass, so that
memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from pollard.activations import activated
from pollard.composites.composite import Composite, biased, composite
from pollard.errors import InvalidInput

BLOCK = 1 << 22  # numbers of an unfolded input that are held at once, 16 MB
_OF_AXES = ("stride", "padding", "dilation")
_NATIVE: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class _Convolution(Composite):
    def __init__(self, whole: nn.Module) -> None:
        super().__init__(whole)
        # Of its own too: each call reads them, and what torch does not find it makes an error of first.
        for name in ("kernel_size", "padding_mode", *_OF_AXES):
            setattr(self, name, getattr(self, name))

    def __setattr__(self, name: str, value: Any) -> None:
        """As every composite; a single number is that of all axes, as torch reads it."""
        super().__setattr__(
            name, (value,) * len(self.kernel_size) if name in _OF_AXES and isinstance(value, int) else value
        )

    @staticmethod
    def refusal(whole: nn.Module) -> str | None:
        """Groups see a part of the channels each."""
        return None if whole.groups == 1 else f"groups={whole.groups}"

    def _is_dense(self) -> bool:
        """Whether torch's own operation computes the same, and nobody wants to see what the linear layer is given."""
        layer = self.linear
        return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)  # noqa: SLF001

    def _taps(self) -> list[tuple[int, ...]]:
        return list(product(*map(range, self.kernel_size)))

    def _blocks(self, x: Tensor, width: int) -> tuple[Tensor, ...]:
        """`x` by samples, so that `width` numbers for each place of one are a block or less; whole in an export, for batches of any size."""
        if torch.compiler.is_exporting():
            return (x,)
        blocks: tuple[Tensor, ...] = x.split(max(1, BLOCK // max(1, width)))
        return blocks


@composite(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ComposedConv(_Convolution):
    """``y[n, o, p] = sum over c, t of W[o, c, t] x[n, c, stride p + dilation t] + b[o]``: `nn.Conv1d` to `nn.Conv3d`.

    activation: "relu", "gelu", "gelu_tanh" or "silu", of the result, bias and all; in the kernel where the layer convolves itself.
    """

    activation: str | None = None

    def axes(self, part: str, matrix: tuple[int, int]) -> tuple[int, ...]:
        """Channels and taps apart."""
        del part
        return matrix[0], self.in_channels, *self.kernel_size

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """As the module it was made of, of a batch or of one sample."""
        spatial = len(self.kernel_size)
        x = input if input.dim() == spatial + 2 else input.unsqueeze(0)
        y = self._by_kernels(x)
        if y is None:
            x = self._padded(x)
            if self._is_dense():
                y = _NATIVE[spatial](x, self.weight, self.bias, self.stride, 0, self.dilation)
            else:
                y = self._unfolded(x)
            y = activated(y, self.activation)
        return y if input.dim() == spatial + 2 else y.squeeze(0)

    def _padded(self, x: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        around = self._around()
        return functional.pad(x, around, mode=mode) if any(around) else x

    def _around(self) -> list[int]:
        """What is added before and after each axis, the last axis first. Zeros go by what `padding` says now, as torch's own do."""
        if self.padding_mode != "zeros":
            made: list[int] = self._reversed_padding_repeated_twice
            return made
        if self.padding == "valid":
            return [0] * 2 * len(self.kernel_size)
        if self.padding == "same":
            both = [dilation * (kernel - 1) for dilation, kernel in zip(self.dilation, self.kernel_size, strict=True)]
            return [side for total in reversed(both) for side in (total // 2, total - total // 2)]
        return [side for one in reversed(self.padding) for side in (one, one)]

    def window(self) -> tuple[Any, ...]:
        """Kernel, stride, dilation, and zeros before and after, one of each for an axis, as its layer convolves images; those of one
        axis are of one row.
        """
        spatial = len(self.kernel_size)
        around = self._around() if self.padding_mode == "zeros" else [0] * 2 * spatial
        padding = tuple(zip(around[-2::-2], around[::-2], strict=True))
        own = [tuple(self.kernel_size), tuple(self.stride), tuple(self.dilation), padding]
        return tuple(own if spatial > 1 else [(one, *each) for one, each in zip((1, 1, 1, (0, 0)), own, strict=True)])

    def images(self, x: Tensor) -> Tensor:
        """A batch as that window is moved over it."""
        x = x if self.padding_mode == "zeros" else self._padded(x)
        return x if len(self.kernel_size) > 1 else x.unsqueeze(2)

    def _by_kernels(self, x: Tensor) -> Tensor | None:
        """As the layer convolves itself, if it does."""
        convolve, bias = getattr(self.linear, "convolve", None), self._parameters.get("bias")
        if convolve is None:
            return None
        made: Tensor | None = convolve(self.images(x), bias, self.window(), activation=self.activation)
        return made if made is None or len(self.kernel_size) > 1 else made.squeeze(2)

    def whole(self) -> nn.Module:
        """The convolution that this is; refused with a fused activation."""
        if self.activation is not None:
            raise InvalidInput(
                f"a convolution with a fused activation, {self.activation!r}",
                "one that torch has, too",
                "Set conv.activation = None and put the module that it is behind it.",
            )
        return super().whole()

    def extra_repr(self) -> str:
        """What `print` shows: what this was made of, and a fused activation."""
        return super().extra_repr() + ("" if self.activation is None else f", activation={self.activation}")

    def _unfolded(self, x: Tensor) -> Tensor:
        taps = self._taps()
        extents = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        ]
        made = []
        for block in self._blocks(x, x.shape[1] * len(taps) * prod(extents)):
            unfold = partial(_columns, taps=taps, extents=extents, strides=self.stride, dilations=self.dilation)
            product_ = _again_in_backward(self.linear, block, unfold)
            made.append(product_.t().unflatten(1, (block.shape[0], *extents)).transpose(0, 1))
        y = torch.cat(made) if len(made) > 1 else made[0]
        bias = self._parameters.get("bias")
        return biased(y, bias if bias is None else bias.view(-1, *[1] * len(extents))).contiguous()


@composite(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class ComposedConvTranspose(_Convolution):
    """``y[n, o, stride p + dilation t] += W[c, o, t] x[n, c, p]``, then the bias: transposed convolutions."""

    def matrix(self, part: str, tensor: Tensor) -> Tensor:
        """`(out * taps, in)`."""
        del part
        return tensor.flatten(1).t()

    def tensor(self, name: str, matrices: Mapping[str, Tensor]) -> Tensor:
        """`(in, out, taps)`."""
        return matrices["linear"].t().reshape(self._shape(name))

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002 - torch's own name
        """As the module it was made of, of a batch or of one sample."""
        spatial = len(self.kernel_size)
        x = input if input.dim() == spatial + 2 else input.unsqueeze(0)
        rule: Any = self._frame[0]
        added = rule._output_padding(  # noqa: SLF001 - the rule is torch's
            input, output_size, self.stride, self.padding, self.kernel_size, spatial, self.dilation
        )
        y, bias = self._by_kernels(x, added), self._parameters.get("bias")
        if y is None:
            y = biased(self._spread(x, added), bias if bias is None else bias.view(-1, *[1] * spatial))
        return y if input.dim() == spatial + 2 else y.squeeze(0)

    def _by_kernels(self, x: Tensor, added: list[int]) -> Tensor | None:
        """As the layer convolves itself, if it does."""
        convolve = getattr(self.linear, "convolve", None)
        if convolve is None:
            return None
        around = tuple((cut, cut) for cut in self.padding)
        window = tuple(self.kernel_size), tuple(self.stride), tuple(self.dilation), around, tuple(added)
        made: Tensor | None = convolve(x, self._parameters.get("bias"), window)
        return made

    def _spread(self, x: Tensor, added: list[int]) -> Tensor:
        taps, places = self._taps(), list(x.shape[2:])
        sizes = [
            (place - 1) * stride + dilation * (kernel - 1) + 1 + more
            for place, stride, dilation, kernel, more in zip(
                places, self.stride, self.dilation, self.kernel_size, added, strict=True
            )
        ]
        made = []
        for block in self._blocks(x, self.out_channels * len(taps) * prod(places)):
            product_ = self.linear(block.transpose(0, 1).reshape(x.shape[1], -1).t())
            parts = product_.t().unflatten(0, (self.out_channels, len(taps))).unflatten(2, (block.shape[0], *places))
            y = x.new_zeros(self.out_channels, block.shape[0], *sizes)
            for tap, window in enumerate(_windows(taps, places, self.stride, self.dilation)):
                y[window] += parts[:, tap]
            inner: tuple[Any, ...] = (
                ...,
                *(slice(cut, size - cut) for cut, size in zip(self.padding, sizes, strict=True)),
            )
            made.append(y[inner].transpose(0, 1).to(product_.dtype))
        return torch.cat(made).contiguous()


def _columns(
    x: Tensor,
    *,
    taps: list[tuple[int, ...]],
    extents: list[int],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Tensor:
    """What each place sees: `(samples * places, channels * taps)`, features-first in memory."""
    channels = x.transpose(0, 1)
    seen = [channels[window] for window in _windows(taps, extents, strides, dilations)]
    return torch.stack(seen, 1).reshape(x.shape[1] * len(taps), -1).t()


def _windows(
    taps: list[tuple[int, ...]], extents: list[int], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> Iterator[tuple[Any, ...]]:
    """For each tap, which of the padded places it meets, in every dimension."""
    for tap in taps:
        yield (
            ...,
            *(
                slice(at * dilation, at * dilation + stride * (extent - 1) + 1, stride)
                for at, extent, stride, dilation in zip(tap, extents, strides, dilations, strict=True)
            ),
        )


_transformed = torch._C._are_functorch_transforms_active  # noqa: SLF001 - has no other name


class MadeAgain:
    """What can be made again of images whenever it is looked at, and is then not kept: `made_again` of unfolded images.

    lasting: whether autograd made the images, and would notice a change.
    """

    def __init__(self, images: Tensor, make: Callable[[Tensor], Tensor], *, lasting: bool) -> None:
        self.images, self.make, self.lasting = images, make, lasting

    def __call__(self) -> Tensor:
        """All of it."""
        return self.make(self.images)

    def clone(self) -> MadeAgain:
        """The same of a copy of the images."""
        return MadeAgain(self.images.clone(), self.make, lasting=True)


def _again_in_backward(layer: nn.Module, x: Tensor, unfold: Callable[[Tensor], Tensor]) -> Tensor:
    """``layer(unfold(x))``; what is unfolded is not kept for the backward pass, but unfolded again there."""
    columns = unfold(x)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or _transformed():
        made: Tensor = layer(columns)
        return made
    held, version = x.detach(), x._version  # noqa: SLF001 - autograd's own check
    origin = x if x._base is None else x._base  # noqa: SLF001 - what a view is of has no other name
    # For whoever watches the layer, and would keep all that is unfolded.
    columns.made_again = MadeAgain(held, unfold, lasting=origin.grad_fn is not None)  # type: ignore[attr-defined]

    # What packs and unpacks lives as long as the graph: it must not hold what is unfolded.
    place, shape = columns.data_ptr(), columns.shape

    def pack(tensor: Tensor) -> Any:
        return None if tensor.data_ptr() == place and tensor.shape == shape else tensor

    def unpack(packed: Any) -> Tensor:
        if packed is not None:
            tensor: Tensor = packed
            return tensor
        if x._version != version:  # noqa: SLF001
            raise InvalidInput(
                "an input of a sparse convolution that was changed in place before its backward pass",
                "inputs that stay as they are until then, as torch's own convolutions want them",
                "Write the in-place operation behind it out of place.",
            )
        return unfold(held)

    with saved_tensors_hooks(pack, unpack):
        found: Tensor = layer(columns)
    return found


__all__ = ["ComposedConv", "ComposedConvTranspose", "MadeAgain"]
