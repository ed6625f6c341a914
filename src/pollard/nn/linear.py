"""A linear layer that stores, trains and saves only the weights it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from pollard.activations import require_activation
from pollard.errors import InvalidInput, PollardError, TopologyError
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.topology import Topology
from pollard.kernels.convolutions.window import Window
from pollard.kernels.products import derived
from pollard.kernels.products.backend import tell_untuned
from pollard.kernels.products.waiting import wait_for_stream
from pollard.nn import initialise, states
from pollard.nn.initialise import Initialiser
from pollard.nn.readable import ReadableWeight, straight_through
from pollard.nn.watched import is_watched
from pollard.ops import convolution, matmul, operators
from pollard.streamed.tensor import kept_values
from pollard.symbolic import called


class SparseLinear(ReadableWeight, nn.Module):
    """``y = x W^T + b`` with a sparse W: `values` is the parameter, `topology` says where they stand, nothing dense exists.

    x: `(..., in_features)`, any strides. y: `(..., out_features)`, features-first in memory for a 2-D x.
    values: `(nnz,)`. bias: `(out_features,)` or None. Any torch optimizer trains it, and all it holds is proportional to
    what is kept. float32 runs on generated kernels, half precision on the same, rounded once; float64 on torch's sparse products.

    The topology belongs to the state, as `row_pointers`, `columns` and `pattern`, but is no parameter or buffer that anybody could write
    to. A buffer holds its signature: where that was overwritten with another's, as averaging two models does, the values
    stand elsewhere than the layer thinks, and it says so instead of computing.

    topology: which weights are kept, of shape (out_features, in_features). initialiser: (topology, generator) to values,
    by default U(-b, b) with b = 1 / sqrt(kept fan-in). activation: "relu", "gelu", "gelu_tanh" or "silu", of the output, fused
    into the kernel; in training ReLU is, the others run behind it. It may be set at any time. device: where values and bias
    go, by default torch's default device; they are drawn on the CPU.
    Raises InvalidInput when the topology has another shape.

    >>> layer = SparseLinear.random(6, 4, density=0.5, generator=torch.Generator().manual_seed(0))
    >>> layer
    SparseLinear(in_features=6, out_features=4, density=0.5, pattern=unstructured, bias=True)
    >>> layer(torch.ones(2, 6)).shape, layer.values.shape
    (torch.Size([2, 4]), torch.Size([12]))
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    topology_signature: Tensor | None
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
        activation: str | None = None,
        device: torch.device | str | None = None,
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
        require_activation(activation)
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.active = None
        dtype = dtype or torch.get_default_dtype()
        self.values = nn.Parameter(initialiser(topology, generator).to(dtype))
        self.bias = nn.Parameter(initialise.uniform_bias(topology, generator).to(dtype)) if bias else None
        self.register_buffer("topology_signature", None, persistent=False)
        self._stand_on(topology)
        self.to(torch.get_default_device() if device is None else device)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        mask: Tensor | Topology,
        pattern: str | Pattern = "unstructured",
        *,
        activation: str | None = None,
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
            initialiser=lambda kept, _: kept_values(weight, kept),
            activation=activation,
            device=weight.device,
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
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A layer born sparse: a random topology of `density`, values drawn straight for it.

        Memory is proportional to what is kept, so a layer whose dense weight could not be allocated can be made.
        """
        topology = Topology.random((out_features, in_features), density, pattern, generator)
        return cls(
            in_features,
            out_features,
            topology,
            bias,
            initialiser=initialiser,
            activation=activation,
            device=device,
            dtype=dtype,
            generator=generator,
        )

    def to_dense(self) -> nn.Linear:
        """An `nn.Linear` with the same function, zeros where nothing is kept; refused with a fused activation."""
        if self.activation is not None:
            fix = "Set layer.activation = None and put the module that it is behind the layer."
            raise InvalidInput(f"a layer with a fused activation, {self.activation!r}", "a plain linear layer", fix)
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
        """Which weights are kept; raises TopologyError where the values were made for another one."""
        held = self._buffers["topology_signature"]
        if held is not self._vouched[0] or operators.writes(held) != self._vouched[1]:
            self._vouch(held)
        return self._topology

    @property
    def row_pointers(self) -> Tensor:
        """Where each row group begins, and where the last one ends, int32 `(groups + 1,)`: a copy."""
        return self.topology.row_pointers

    @property
    def columns(self) -> Tensor:
        """The column of each kept grain, int32 `(grains,)`: a copy."""
        return self.topology.columns

    @property
    def pattern(self) -> Pattern:
        """The pattern of the kept weights."""
        return self._topology.pattern

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return self.values.numel() / max(self.in_features * self.out_features, 1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """The product, for an input of shape `(..., in_features)`; contiguous, but for one of two dimensions."""
        # What compilers trace is checked where they call it: they would take these attributes for constants.
        topology = self._topology if torch.compiler.is_compiling() else self.topology
        # Where torch keeps them: attributes of a module cost as much as allocating the result.
        held = self._parameters
        values: Tensor | None = held.get("values")
        bias = held.get("bias")
        if values is None or bias is None:
            # Parametrized, a replica, or a layer without bias.
            values, bias = self.values, self.bias
        if self.active is not None:
            values = straight_through(values, self.active)
        # Of a symbol nobody knows the dimensions: they are flattened in any case.
        if isinstance(input, Tensor) and input.dim() == 2:
            return matmul.linear(input, values, topology, bias, activation=self.activation)
        if isinstance(input, Proxy) and input.tracer.root is not self:
            return called(self, input.tracer, [input], {})
        matmul.refuse(input)
        # Who has more dimensions than a batch works on rows next: norms, attention, what goes past a layer.
        x = input.reshape(-1, input.shape[-1])
        y = matmul.linear(x, values, topology, bias, activation=self.activation, rows=True)
        return y.reshape(input.shape[:-1] + (self.out_features,)).contiguous()  # noqa: RUF005 - a symbol cannot be unpacked

    def convolve(
        self, x: Tensor, bias: Tensor | None, window: tuple[Any, ...], *, activation: str | None = None
    ) -> Tensor | None:
        """The convolution that this layer is of unfolded images, with a bias and an activation behind it that are not its own; None where
        they have to be unfolded.

        x: `(samples, channels, rows, columns)`, or of another number of axes. window: kernel, stride, dilation and padding, one of each for
        an axis; in_features are channels x taps. A transposed one has a fifth, what is added to the result; its out_features are channels
        x taps. Whoever watches the layer is to see what it is given, and an activation of the layer's own comes before that bias.
        """
        if self.activation is not None or is_watched(self):
            return None
        topology = self._topology if torch.compiler.is_compiling() else self.topology
        values = self.values if self.active is None else straight_through(self.values, self.active)
        return convolution.convolve(x, values, topology, bias, Window(*window), activation=activation)

    def reset_parameters(self) -> None:
        """Draws values and bias anew, from U(-b, b) with b = 1 / sqrt(kept fan-in); what is kept stays."""
        with torch.no_grad():
            self.values.copy_(initialise.uniform(self.topology))
            if self.bias is not None:
                self.bias.copy_(initialise.uniform_bias(self.topology))

    def _stand_on(self, topology: Topology) -> None:
        self._topology = topology
        operators.know(topology)
        held = self.topology_signature
        if held is None or held.is_inference():
            place = "cpu" if held is None else held.device
            self.topology_signature = topology.signature.to(place, copy=True)
        else:
            # In place: whoever shares the values, in another process perhaps, learns that they stand elsewhere now.
            held.copy_(topology.signature)
        self._vouched = self.topology_signature, operators.writes(self.topology_signature)

    def _vouch(self, held: Tensor | None) -> None:
        """Raises TopologyError unless the buffer, which is another or was written to, still says the same."""
        if held is None or (not held.is_meta and _numbers(held) != self._topology.signature.tolist()):
            raise TopologyError(
                "values of another topology than the layer's: its signature was overwritten, by averaging over models, by "
                "functional_call or by a copy of parameters and buffers",
                f"values that stand where {self._topology!r} says",
                "Copy a model with load_state_dict or copy.deepcopy, which bring the topology along, and average one whose "
                "topology moves by place: see docs/how-to/averaging.md.",
            )
        self._vouched = held, operators.writes(held)

    def keep_(self, topology: Topology, values: Tensor) -> None:
        """Keeps `topology` from now on, with `values` `(nnz,)`, taken over; its gradient is gone.

        The parameter stays the same object, so that optimizers keep pointing at it; what they hold for it is theirs to move.
        Raises InvalidInput for a topology of another shape, or values that do not fit it.
        """
        if topology.shape != self._topology.shape or values.shape != (topology.nnz,):
            raise InvalidInput(
                f"a topology of shape {topology.shape} with values of shape {tuple(values.shape)}",
                f"shape {self._topology.shape}, and one value for each kept weight",
                "Make the topology for this layer.",
            )
        self.values.grad = None
        wait_for_stream(self.values.detach())
        if values.shape != self.values.shape:
            # An old loss that is still around keeps the node that accumulates this parameter's gradients, at their old
            # size. A change of dtype, unlike one of size, makes torch let go of it.
            self.values.data = values.new_empty(0, dtype=torch.half if values.dtype != torch.half else torch.float)
        self.values.data = values
        before = self._topology
        self._stand_on(topology)
        if topology is not before:
            operators.tell_moved(self.values, topology)
            derived.let_go(before)

    def shrink_(self, topology: Topology, values: Tensor | None = None) -> None:
        """Keeps `topology` from now on, a part of what is kept, with the values there, or others `(nnz,)`.

        Raises TopologyError for another shape or pattern.
        """
        held = self.values.detach()
        moved = SparseMatrix(held, self.topology).moved(topology).values
        self.keep_(topology, moved if values is None else values.to(held, copy=True))

    def extra_repr(self) -> str:
        """What `print` shows between the brackets."""
        told = f"in_features={self.in_features}, out_features={self.out_features}, density={self.density:.4g}, "
        told += f"pattern={self.pattern}, bias={self.bias is not None}"
        return told if self.activation is None else f"{told}, activation={self.activation}"

    def __prepare_scriptable__(self) -> NoReturn:
        raise InvalidInput(
            "torch.jit.script of a sparse layer",
            "a way that runs its operator: TorchScript cannot hold a topology",
            "Use torch.export.export(model, inputs) or torch.jit.trace(model, inputs), or pollard.densify_(model) first.",
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
        tell_untuned(self.values.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in states.of(self.topology).items()})

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
        try:
            if states.has_weight(state_dict, prefix, own_values="values" in self._parameters):
                held: list[Any] = [state_dict.get(prefix + name) for name in ("values", *states.ARRAYS, states.PATTERN)]
                self._adopt(*held)
            else:
                missing_keys.extend(prefix + name for name in states.ARRAYS)
        except PollardError as refused:
            error_msgs.append(f"{prefix or 'the layer'}: {refused}")
            return
        # Torch's loader copies the rest; what the signature stands for is in place already.
        own = {prefix + name for name in (*states.ARRAYS, states.PATTERN)}
        rest = {name: tensor for name, tensor in state_dict.items() if name not in own}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _adopt(self, values: Tensor | None, row_pointers: Tensor, columns: Tensor, pattern: Tensor | None) -> None:
        # Makes room for another topology; the parameter stays the same object, so that optimizers keep pointing at it.
        topology = states.topology_of((self.out_features, self.in_features), row_pointers, columns, pattern)
        if values is None:
            values = self.values
            if not topology.same_as(self._topology):
                raise TopologyError(
                    "a topology for values that a hook makes of another parameter",
                    repr(self._topology),
                    "Undo the hook, load, and set it again.",
                )
        if values.shape != (topology.nnz,):
            raise TopologyError(
                f"values of shape {tuple(values.shape)}",
                f"({topology.nnz},)",
                "Values and indices must be of one layer.",
            )
        if topology.same_as(self._topology):
            self._stand_on(self._topology)
        else:
            self.keep_(topology, values.detach().to(self.values.device, self.values.dtype, copy=True))


def _numbers(buffer: Tensor) -> list[float]:
    if torch._C._functorch.is_functorch_wrapped_tensor(buffer):  # noqa: SLF001 - no public name
        # Stacked for an ensemble: right where all its members agree.
        plain = torch._C._functorch.get_unwrapped(buffer)  # noqa: SLF001
        rows = plain.reshape(-1, buffer.numel()).tolist()
        return rows[0] if all(row == rows[0] for row in rows) else []
    numbers: list[float] = buffer.cpu().tolist()
    return numbers


__all__ = ["SparseLinear"]
