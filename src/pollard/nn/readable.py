"""What reads `weight` of a sparse layer, past its forward pass, gets: a dense weight, made only when it is computed with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.lazy import LazyWeight, not_written
from pollard.nn.states import ARRAYS, PATTERN

if TYPE_CHECKING:

    class Kept(Protocol):
        """A layer of kept values."""

        values: nn.Parameter
        active: Tensor | None

        @property
        def topology(self) -> Topology:
            """Where they stand."""


# What says where values stand.
_STANDING = frozenset(("topology", *ARRAYS, PATTERN))


class ReadableWeight:
    """Gives a layer of kept values a `weight` to read, and refuses what would be written past its values."""

    @property
    def weight(self: Kept) -> Tensor:
        """The dense weight `(out, in)`, zero where nothing is kept: made anew by whatever computes with it, never stored.

        Its shape, dtype, device and `requires_grad` cost nothing. Gradients flow through it to `values`. What would write to
        it raises InvalidInput: the parameter is `values`. torch's fused paths stand back from it.
        """
        if torch.compiler.is_compiling():
            found: Tensor = _uncompiled(self)
            return found
        return LazyWeight(self.topology.shape, [self.values], partial(dense_weight, self), partial(_gradient, self))

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch does; InvalidInput for the weight, which is not stored, and for what says where values stand."""
        if name == "weight":
            raise not_written("an assignment")
        if name in _STANDING:
            raise InvalidInput(
                f"an assignment to {name} of a sparse layer",
                "a topology that changes together with its values",
                "Use layer.keep_(topology, values) or load_state_dict. torch.func.functional_call takes parameters and buffers, not a "
                "state: {**dict(model.named_parameters()), **dict(model.named_buffers())}.",
            )
        if name == "parametrizations" and type(value) is nn.ModuleDict and not value:
            value = _Parametrizations()
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch does, but for a `weight`, or what torch.nn.utils.prune would keep of it."""
        if name in {"weight", "weight_orig"}:
            raise not_written("an assignment")
        super().register_parameter(name, param)  # type: ignore[misc]  # of nn.Module, which comes after


class _Parametrizations(nn.ModuleDict):
    """torch's, which takes no name that it has a method of: `values` is one."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module


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


def _gradient(layer: Kept) -> Tensor | None:
    gradient = layer.values.grad
    return None if gradient is None else _spread(gradient, layer.topology)


def _spread(values: Tensor, topology: Topology) -> Tensor:
    topology = topology.vectors
    rows, columns = topology.pattern.rows, topology.shape[1]
    grains = values.new_zeros(topology.groups * columns, rows)
    grains = grains.index_put((topology.positions(),), values.view(-1, rows))
    return grains.view(topology.groups, columns, rows).transpose(1, 2).reshape(topology.shape)


__all__ = ["ReadableWeight", "dense_weight", "straight_through"]
