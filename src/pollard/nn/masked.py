"""The slow twin of a sparse linear layer: a dense weight under a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes

from pollard.activations import activated
from pollard.errors import InvalidInput
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.convolutions.window import Window
from pollard.nn import initialise
from pollard.nn.readable import straight_through
from pollard.nn.watched import is_watched
from pollard.streamed.tensor import StreamedTensor
from pollard.symbolic import called


class KeptParameter(nn.Parameter):
    """A parameter that says that it is not all there is to its layer, and is an ordinary one otherwise.

    torch's fused paths (`nn.TransformerEncoderLayer` in eval mode) read weights past the layers that own them, and would
    miss the mask; they stand back from a parameter that overrides torch's functions, as this one does, to no effect.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - what torch's own documentation gives for this
            return func(*args, **(kwargs or {}))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # torch would bring back a plain parameter.
        del protocol
        return _rebuilt, (self.data, self.requires_grad)


_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001 - no public name


def _rebuilt(data: Tensor, requires_grad: bool) -> KeptParameter:
    return KeptParameter(data, requires_grad)


class MaskedLinear(nn.Module):
    """`y = x (weight * mask)^T + bias`: what a sparse layer computes, at dense cost; the specification of its training.

    weight: `(out, in)` Parameter, zero where nothing is kept. mask: bool buffer `(out, in)`, True = keep. bias: `(out,)`
    Parameter or None.

    The gradient of a dropped weight is exactly zero, so that optimizers leave it at zero, and whoever reads `weight` past
    the layer reads what it computes with. What is written there all the same, neither `forward` nor `to_dense` reads, and
    torch's fused paths are declined. Raises InvalidInput where weight and topology differ in shape.

    >>> layer = MaskedLinear(torch.tensor([[1.0, 2.0]]), Topology.from_mask(torch.tensor([[True, False]])))
    >>> layer(torch.tensor([[3.0, 4.0]])).tolist(), layer.density
    ([[3.0]], 0.5)
    """

    weight: Tensor
    mask: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, topology: Topology, bias: Tensor | None = None) -> None:
        super().__init__()
        if tuple(weight.shape) != topology.shape:
            raise InvalidInput(
                f"a weight of shape {tuple(weight.shape)} with a topology of shape {topology.shape}",
                "equal shapes",
                "Take the topology that was made for this layer.",
            )
        self.pattern: Pattern = topology.pattern
        mask = topology.mask().to(weight.device)
        self.weight = KeptParameter(torch.where(mask, weight.detach(), 0.0), requires_grad=weight.requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_buffer("mask", mask)
        # Bool (out, in): which kept weights the forward pass reads, where it does not read all.
        self.active: Tensor | None = None

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor | Topology, pattern: str | Pattern = "unstructured") -> Self:
        """The twin that keeps `mask` (a bool tensor `(out, in)`, or a topology, which brings its own pattern) of `linear`."""
        topology = mask if isinstance(mask, Topology) else Topology.from_mask(mask, pattern)
        weight = linear.weight
        if isinstance(weight, StreamedTensor):
            weight = nn.Parameter(weight.to_dense(), weight.requires_grad)
        return cls(weight, topology, linear.bias)

    def to_dense(self) -> nn.Linear:
        """A linear layer with the mask applied to its weight."""
        out_features, in_features = self.weight.shape
        # On no device first: no random numbers are drawn, and nothing is written twice.
        linear = nn.Linear(in_features, out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self._kept().detach(), requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return linear

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """`x (weight * mask)^T + bias`: `(..., in)` to `(..., out)`, features-first in memory for a 2-D x, as of `SparseLinear`."""
        if isinstance(input, Proxy) and input.tracer.root is not self:
            return called(self, input.tracer, [input], {})
        weight = self._kept()
        if self.active is not None:
            weight = straight_through(weight, self.active)
        y = functional.linear(input, weight, self.bias)
        if isinstance(input, Proxy) or input.dim() != 2 or torch.compiler.is_compiling():
            return y
        # Dropout draws number by number as they lie in memory: both storages are to drop the same.
        return y.t().contiguous().t()

    def convolve(
        self, x: Tensor, bias: Tensor | None, window: tuple[Any, ...], *, activation: str | None = None
    ) -> Tensor | None:
        """The convolution that this layer is of unfolded images, with another bias and an activation, by torch's own; None where
        they have to be unfolded, for whoever watches the layer.

        x: `(samples, channels, rows, columns)`. window: kernel, stride, dilation and padding, two of each.
        """
        if is_watched(self) or not Window(*window).planar:
            return None
        kernel, stride, dilation, padding = window
        weight = self._kept() if self.active is None else straight_through(self._kept(), self.active)
        around = [before for before, _ in padding]
        # On a GPU a padded copy of the images takes about as long as what is done with it.
        if x.device.type == "cpu" or around != [after for _, after in padding]:
            x, around = functional.pad(x, (*padding[1], *padding[0])), [0, 0]
        y = functional.conv2d(x, weight.unflatten(1, (-1, *kernel)), bias, stride, around, dilation)
        if y.device.type == "cpu":
            # As the sparse layer leaves it, whatever the images' own order.
            y = y.contiguous()
        return activated(y, activation)

    def reset_parameters(self) -> None:
        """Draws kept weights and bias anew, as `SparseLinear` draws them: from U(-b, b) with b = 1 / sqrt(kept fan-in)."""
        topology = self.topology
        with torch.no_grad():
            self.weight.copy_(SparseMatrix(initialise.uniform(topology), topology).to_dense())
            if self.bias is not None:
                self.bias.copy_(initialise.uniform_bias(topology))

    def _kept(self) -> Tensor:
        weight = self.weight
        if isinstance(weight, KeptParameter) and not torch.compiler.is_compiling() and _modes():
            # Tracers refuse types that they do not know.
            with _disable_current_modes():
                weight = weight.as_subclass(Tensor)
        # where, not a product: a dropped weight that is not finite stays without effect.
        return torch.where(self.mask, weight, 0.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
        if not isinstance(self.weight, KeptParameter):  # torch made a plain parameter, as it does for another device
            self.weight = KeptParameter(self.weight.detach(), self.weight.requires_grad)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # A dense state brings numbers where nothing is kept.
        if isinstance(self.weight, KeptParameter):
            with torch.no_grad():
                self.weight.masked_fill_(~self.mask, 0.0)
        else:  # the state's own tensor, by assign=True
            self.weight = KeptParameter(self._kept().detach(), self.weight.requires_grad)

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    @property
    def topology(self) -> Topology:
        """The topology of the mask, made anew at each call."""
        return Topology.from_mask(self.mask.cpu(), self.pattern)

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return int(self.mask.sum()) / self.mask.numel()

    @torch.no_grad()
    def shrink_(self, topology: Topology, values: Tensor | None = None) -> None:
        """Keeps `topology` from now on, a part of what is kept, with the weights there, or other `values` `(nnz,)`."""
        if values is not None:
            self.weight.copy_(SparseMatrix(values.to(self.weight), topology).to_dense())
        self.mask.copy_(topology.mask())
        self.weight.masked_fill_(~self.mask, 0.0)
        self.weight.grad = None

    def extra_repr(self) -> str:
        """What `print(model)` shows between the brackets."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, density={self.density:.4g}, "
            f"pattern={self.pattern}, bias={self.bias is not None}"
        )
