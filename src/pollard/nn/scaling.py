"""Layers whose rows can be scaled and shifted: what folds into a linear layer or a convolution, sparse or dense."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pollard.composites.convolution import ComposedConv
from pollard.nn.linear import SparseLinear
from pollard.nn.masked import MaskedLinear

LINEAR = (SparseLinear, MaskedLinear, nn.Linear)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class Target:
    """A layer whose rows can be scaled: `holder` has the bias, the parameter `key` of `layer` the rows."""

    holder: nn.Module
    layer: nn.Module
    key: str

    @property
    def numbers(self) -> nn.Parameter:
        """The weights, or the values kept of them."""
        return self.layer.get_parameter(self.key)

    @property
    def bias(self) -> nn.Parameter | None:
        """`(rows,)`, if there is one."""
        # Where a convolution has none, its attribute would be what its frame says.
        bias: nn.Parameter | None = self.holder._parameters.get("bias")  # noqa: SLF001
        return bias

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return self.layer.topology.shape[0] if isinstance(self.layer, SparseLinear) else len(self.numbers)

    def scaled(self, scale: Tensor) -> Tensor:
        """The numbers, each times the `scale` of its row."""
        if isinstance(self.layer, SparseLinear):
            kept = self.layer.topology.weight_positions() // max(1, self.layer.in_features)
            return self.numbers * scale[kept.to(scale.device)]
        return self.numbers * scale.view(-1, *[1] * (self.numbers.dim() - 1))

    def set_bias(self, bias: nn.Parameter | None) -> None:
        """Gives the layer `bias`, or none."""
        setattr(self.holder, "bias", bias)  # noqa: B010 - modules hold anything, for who checks types


def target_of(module: nn.Module) -> Target | None:
    """`module` as a layer whose rows can be scaled, if it is one and its numbers are plain parameters."""
    layer: Any = module.linear if type(module) is ComposedConv else module
    if type(layer) not in (*LINEAR, *(_CONVOLUTIONS if layer is module else ())):
        return None
    key = "values" if isinstance(layer, SparseLinear) else "weight"
    held = layer._parameters.get(key)  # noqa: SLF001 - made anew at each call, it would be an attribute still
    if held is None or isinstance(held, nn.parameter.UninitializedParameter):
        return None
    # A bias of the layer's own within a convolution would have to be scaled as well; nothing makes one.
    apart = layer is not module and layer.bias is not None
    masked = vars(module).get("bias") is not None  # by torch.nn.utils.prune
    return None if apart or masked else Target(module, layer, key)


def takes_activation(target: Target) -> bool:
    """Whether the layer computes an activation itself when told to: a `SparseLinear` and sparse convolutions do."""
    return isinstance(target.holder, SparseLinear | ComposedConv) and not isinstance(target.layer, nn.Linear)


def affine(norm: Any, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """``y = scale x + shift`` of a norm, behind another such function if there is one; float32 or float64."""
    wide = torch.promote_types(norm.running_var.dtype, torch.float32)
    own = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    own = own if norm.weight is None else own * norm.weight
    rest = -norm.running_mean * own
    rest = rest if norm.bias is None else rest + norm.bias
    return (own, rest) if scale is None or shift is None else (own * scale, own * shift + rest)


def folded(target: Target, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor] | None:
    """Numbers and bias with that function behind them, each rounded once; None where that overflows."""
    old = target.numbers
    wide = torch.promote_types(old.dtype, scale.dtype)
    scale, shift = scale.to(old.device, wide), shift.to(old.device, wide)
    numbers = target.scaled(scale).to(old.dtype)
    bias = shift if target.bias is None else target.bias * scale + shift
    bias = bias.to(old.dtype if target.bias is None else target.bias.dtype)
    whole = old.is_meta or (bool(numbers.isfinite().all()) and bool(bias.isfinite().all()))
    return (numbers, bias) if whole or not bool(old.isfinite().all()) else None


def write(target: Target, numbers: Tensor, bias: Tensor, undone: ExitStack) -> None:
    """Puts them in place of what `target` has; the parameters stay the same objects, and their gradients are gone.

    Memory is not written to: others may share it. `undone` learns how to undo it.
    """
    parameter, held = target.numbers, target.bias
    _put_data(parameter, numbers, undone)
    if held is not None:
        _put_data(held, bias, undone)
    else:
        undone.callback(target.set_bias, None)
        target.set_bias(nn.Parameter(bias, parameter.requires_grad))


def _put_data(parameter: nn.Parameter, new: Tensor, undone: ExitStack) -> None:
    before, grad = parameter.data, parameter.grad

    def back() -> None:
        parameter.data, parameter.grad = before, grad

    undone.callback(back)
    parameter.grad = None
    parameter.data = new


__all__ = ["LINEAR", "Target", "affine", "folded", "takes_activation", "target_of", "write"]
