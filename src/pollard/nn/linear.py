"""A linear layer that stores, trains and saves only the weights it keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from pollard.errors import InvalidInput, PollardError, TopologyError
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.nn import initialise
from pollard.nn.initialise import Initialiser
from pollard.ops.matmul import carriers, let_go, product, topology_of


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with a sparse W: `values` is the parameter, the index arrays are buffers, nothing dense exists.

    x: `(..., in_features)`, any strides. y: `(..., out_features)`, features-first in memory for a 2-D x.
    values: `(nnz,)`. bias: `(out_features,)` or None. Any torch optimizer trains it, and all it holds is proportional to
    what is kept. float32 on the CPU runs on generated kernels; other dtypes on plain torch, slowly.

    topology: which weights are kept, of shape (out_features, in_features). initialiser: (topology, generator) to values,
    by default U(-b, b) with b = 1 / sqrt(kept fan-in). relu: apply ReLU to the output, fused into the kernel.
    Raises InvalidInput when the topology has another shape.

    >>> layer = SparseLinear.random(6, 4, density=0.5, generator=torch.Generator().manual_seed(0))
    >>> layer
    SparseLinear(in_features=6, out_features=4, density=0.5, pattern=unstructured, bias=True)
    >>> layer(torch.ones(2, 6)).shape, layer.values.shape
    (torch.Size([2, 4]), torch.Size([12]))
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    row_pointers: Tensor
    columns: Tensor
    # Bool (nnz,): which values the forward pass reads, where it does not read all; every value gets its gradient.
    active: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        topology: Topology,
        bias: bool = True,
        *,
        initialiser: Initialiser = initialise.uniform,
        relu: bool = False,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if topology.shape != (out_features, in_features):
            raise InvalidInput(
                f"a topology of shape {topology.shape}",
                f"({out_features}, {in_features}), that is (out_features, in_features)",
                "Build the topology for this layer's weight; rows are outputs.",
            )
        self.in_features, self.out_features, self.relu = in_features, out_features, relu
        self.active = None
        dtype = dtype or torch.get_default_dtype()
        self.values = nn.Parameter(initialiser(topology, generator).to(dtype))
        self.bias = nn.Parameter(initialise.uniform_bias(topology, generator).to(dtype)) if bias else None
        row_pointers, columns = carriers(topology)
        self.register_buffer("row_pointers", row_pointers)
        self.register_buffer("columns", columns)

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, mask: Tensor | Topology, pattern: str | Pattern = "unstructured", *, relu: bool = False
    ) -> Self:
        """A layer with the weights of `linear` that `mask` keeps: a bool `(out, in)`, True = keep, or a topology.

        `pattern` goes with a bool mask, which must keep or drop whole grains of it. Raises InvalidInput on another shape.

        >>> dense = nn.Linear(3, 2)
        >>> SparseLinear.from_dense(dense, torch.tensor([[True, False, True], [False, True, False]])).values.shape
        torch.Size([3])
        """
        topology = mask if isinstance(mask, Topology) else Topology.from_mask(mask, pattern)
        if topology.shape != tuple(linear.weight.shape):
            raise InvalidInput(
                f"a mask of shape {topology.shape}",
                f"the shape of the weight, {tuple(linear.weight.shape)}",
                "Pass one bool per weight, (out_features, in_features).",
            )
        weight = linear.weight.detach()

        layer = cls(
            linear.in_features,
            linear.out_features,
            topology,
            bias=False,
            initialiser=lambda kept, _: SparseMatrix.from_dense(weight, kept).values,
            relu=relu,
            dtype=weight.dtype,
        )
        layer.values.requires_grad_(linear.weight.requires_grad)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), linear.bias.requires_grad)
        return layer.train(linear.training)

    @classmethod
    def random(  # noqa: PLR0917 - the names and their order are agreed upon: others build on them
        cls,
        in_features: int,
        out_features: int,
        density: float,
        pattern: str | Pattern = "unstructured",
        bias: bool = True,
        generator: torch.Generator | None = None,
        *,
        initialiser: Initialiser = initialise.uniform,
        relu: bool = False,
    ) -> Self:
        """A layer born sparse: a random topology of `density`, values drawn straight for it.

        Memory is proportional to what is kept, so a layer whose dense weight could not be allocated can be made.
        """
        topology = Topology.random((out_features, in_features), density, pattern, generator)
        return cls(in_features, out_features, topology, bias, initialiser=initialiser, relu=relu, generator=generator)

    def to_dense(self) -> nn.Linear:
        """An `nn.Linear` with the same function, zeros where nothing is kept; refused with a fused ReLU."""
        if self.relu:
            raise InvalidInput(
                "a layer with a fused ReLU", "a plain linear layer", "Set layer.relu = False and add nn.ReLU behind it."
            )
        dense = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.values.dtype
        )
        weight = SparseMatrix(self.values.detach(), self.topology).to_dense()
        dense.weight = nn.Parameter(weight, self.values.requires_grad)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return dense.train(self.training)

    @property
    def topology(self) -> Topology:
        """Which weights are kept."""
        return topology_of(self.row_pointers, self.columns, self.in_features, self._rows)

    @property
    def pattern(self) -> Pattern:
        """The pattern of the kept weights."""
        return Pattern(self._rows)

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return self.values.numel() / max(self.in_features * self.out_features, 1)

    @property
    def _rows(self) -> int:
        groups = len(self.row_pointers) - 1
        return self.out_features // groups if groups else 1

    def forward(self, x: Tensor) -> Tensor:
        """The product, for x of shape `(..., in_features)`."""
        flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        arrays = (self.row_pointers, self.columns)
        sizes = (self.in_features, self._rows)
        values = self.values if self.active is None else straight_through(self.values, self.active)
        y = product(flat, values, *arrays, self.bias, *sizes, self.relu)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def keep_(self, topology: Topology, values: Tensor) -> None:
        """Keeps `topology` from now on, with `values` `(nnz,)`, taken over; its gradient is gone.

        The parameter stays the same object, so that optimizers keep pointing at it; what they hold for it is theirs to move.
        Raises InvalidInput for a topology of another shape, or values that do not fit it.
        """
        if topology.shape != self.topology.shape or values.shape != (topology.nnz,):
            raise InvalidInput(
                f"a topology of shape {topology.shape} with values of shape {tuple(values.shape)}",
                f"shape {self.topology.shape}, and one value for each kept weight",
                "Make the topology for this layer.",
            )
        self.values.grad = None
        if values.shape != self.values.shape:
            # An old loss that is still around keeps the node that accumulates this parameter's gradients, at their old
            # size. A change of dtype, unlike one of size, makes torch let go of it.
            self.values.data = values.new_empty(0, dtype=torch.half if values.dtype != torch.half else torch.float)
        self.values.data = values
        before = self.topology
        self.row_pointers, self.columns = carriers(topology)
        if topology is not before:
            let_go(before)

    def extra_repr(self) -> str:
        """What `print` shows between the brackets."""
        fused = ", relu=True" if self.relu else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, density={self.density:.4g}, "
            f"pattern={self.pattern}, bias={self.bias is not None}{fused}"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Index arrays are frozen: copies of a layer share them, and what kernels derived from them.
        memo.update({id(buffer): buffer for buffer in (self.row_pointers, self.columns)})
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device = fn(self.values.detach()[:0]).device
        if device.type != "cpu":
            raise InvalidInput(
                f"device {str(device)!r} for a sparse layer",
                "'cpu': kernels are generated for CPUs",
                "Keep the model on the CPU, or call pollard.densify_(model) before moving it.",
            )
        arrays = (self.row_pointers, self.columns)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
        # Index arrays have one dtype and one device: whatever happened to the values, they stay as they were.
        self.row_pointers, self.columns = arrays
        return self

    def _load_from_state_dict(  # noqa: PLR0917 - torch's own hook
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        indices = {prefix + name for name in ("row_pointers", "columns")}
        names = [prefix + "values", prefix + "row_pointers", prefix + "columns"]
        absent = [name for name in names if name not in state_dict]
        if absent:
            missing_keys.extend(absent)
            return
        try:
            self._adopt(*(state_dict[name] for name in names))
        except PollardError as refused:
            error_msgs.append(f"{prefix or 'the layer'}: {refused}")
            return
        # The index arrays are in place already and frozen: torch's loader would write into them.
        rest = {name: tensor for name, tensor in state_dict.items() if name not in indices}
        self._non_persistent_buffers_set.update(("row_pointers", "columns"))
        try:
            super()._load_from_state_dict(
                rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        finally:
            self._non_persistent_buffers_set.difference_update(("row_pointers", "columns"))

    def _adopt(self, values: Tensor, row_pointers: Tensor, columns: Tensor) -> None:
        # Makes room for another topology; the parameter stays the same object, so that optimizers keep pointing at it.
        groups = len(row_pointers) - 1
        if groups < 1 or self.out_features % groups:
            raise TopologyError(
                f"{groups} row groups",
                f"a divisor of {self.out_features} rows",
                "Load the file into the layer it came from.",
            )
        topology = Topology(
            (self.out_features, self.in_features), Pattern(self.out_features // groups), row_pointers, columns
        )
        if values.shape != (topology.nnz,):
            raise TopologyError(
                f"values of shape {tuple(values.shape)}",
                f"({topology.nnz},)",
                "Values and indices must be of one layer.",
            )
        if not topology.same_as(self.topology):
            self.keep_(topology, values.detach().to(self.values.dtype, copy=True))


def straight_through(values: Tensor, active: Tensor) -> Tensor:
    """`values` where `active`, zero elsewhere; the gradient is that of `values` everywhere.

    >>> values = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> read = straight_through(values, torch.tensor([True, False]))
    >>> read.sum().backward()
    >>> read.tolist(), values.grad.tolist()
    ([1.0, 0.0], [1.0, 1.0])
    """
    return values + (torch.where(active, values, 0.0) - values).detach()


__all__ = ["SparseLinear", "straight_through"]
