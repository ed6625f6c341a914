"""RNN, LSTM and GRU, and their cells: the matrices of inputs and of states are linear layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from pollard.composites.composite import Composite, biased, composite
from pollard.errors import InvalidInput

# Of one layer and direction, or of all: h, and for an LSTM c.
State = tuple[Tensor, ...]
# What a constructor is given that `forward` reads.
_READ = ("batch_first", "bidirectional", "dropout", "hidden_size", "nonlinearity", "num_layers", "proj_size")


class _Gated(Composite):
    """What the recurrent modules and their cells share."""

    @abstractmethod
    def step(self, given: Tensor, state: State, own: str) -> State:
        """The state after `given`, what the inputs bring to the gates, bias included; `own` ends the names of what is used."""

    def from_inputs(self, x: Tensor, own: str) -> Tensor:
        """What inputs `(..., in)` bring to the gates: `(..., gates * hidden)`."""
        return biased(getattr(self, f"ih{own}")(x), self._parameters.get(f"bias_ih{own}"))

    def from_state(self, h: Tensor, own: str) -> Tensor:
        """What the state brings to the gates."""
        return biased(getattr(self, f"hh{own}")(h), self._parameters.get(f"bias_hh{own}"))


class _Plain(_Gated):
    def step(self, given: Tensor, state: State, own: str) -> State:
        total = given + self.from_state(state[0], own)
        return (total.tanh() if self.nonlinearity == "tanh" else total.relu(),)


class _Long(_Gated):
    def step(self, given: Tensor, state: State, own: str) -> State:
        inward, forget, cell, outward = (given + self.from_state(state[0], own)).chunk(4, -1)
        c = forget.sigmoid() * state[1] + inward.sigmoid() * cell.tanh()
        h = outward.sigmoid() * c.tanh()
        return (getattr(self, f"hr{own}")(h) if f"hr{own}" in self._parts else h), c


class _Reset(_Gated):
    def step(self, given: Tensor, state: State, own: str) -> State:
        [h] = state
        (r, z, n), (r_h, z_h, n_h) = given.chunk(3, -1), self.from_state(h, own).chunk(3, -1)
        new, keep = (n + (r + r_h).sigmoid() * n_h).tanh(), (z + z_h).sigmoid()
        return (new + keep * (h - new),)


class _Sequence(_Gated):
    """Layers and directions over a sequence: padded, packed, or of one sample."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__(whole)
        # Read from here by torch.compile, which traces into no recurrent module, as the frame holds one.
        vars(self).update({name: vars(whole)[name] for name in _READ if name in vars(whole)})

    @classmethod
    def parts(cls, whole: nn.Module) -> dict[str, str]:
        """`ih_l0`, `hh_l0`, with projections `hr_l0`; of the backward direction `ih_l0_reverse` and so on."""
        names = [name for name, _ in whole.named_parameters() if name.startswith("weight_")]
        return {name.removeprefix("weight_"): name for name in names}

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:  # noqa: A002 - torch's own name
        """As the module it was made of: outputs of all steps, and the last state."""
        if isinstance(input, PackedSequence):
            first = None if hx is None else _arranged(self._stated(hx), input.sorted_indices)
            outputs, last = self._run(input.data, input.batch_sizes.tolist(), first)
            packed = PackedSequence(outputs, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            return packed, self._given_back(_arranged(last, input.unsorted_indices))
        if input.dim() not in {2, 3}:
            raise InvalidInput(
                f"an input of {input.dim()} dimensions",
                "2, one sequence, or 3, a batch of them",
                f"Arrange it as {'(batch, steps, features)' if self.batch_first else '(steps, batch, features)'}.",
            )
        alone, along = input.dim() == 2, int(self.batch_first)
        x = input.unsqueeze(1) if alone else input.transpose(0, along)
        steps, samples, features = x.shape
        if not steps:
            raise InvalidInput("a sequence of no steps", "at least one", "Leave empty sequences out of the batch.")
        first = None if hx is None else self._stated(hx)
        first = tuple(part.unsqueeze(1) for part in first) if first and alone else first
        outputs, last = self._run(x.reshape(steps * samples, features), [samples] * steps, first)
        made = outputs.reshape(steps, samples, outputs.shape[-1])
        if alone:
            return made.squeeze(1), self._given_back(tuple(part.squeeze(1) for part in last))
        return made.transpose(0, along), self._given_back(last)

    def _run(self, data: Tensor, sizes: list[int], first: State | None) -> tuple[Tensor, State]:
        """All layers over steps one behind the other in `data`, `sizes` samples each, the longest sequences first."""
        ends = ["", "_reverse"] if self.bidirectional else [""]
        began = self._begun(data, sizes, first, len(ends) * self.num_layers)
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                data = functional.dropout(data, self.dropout, self.training)
            made = []
            for end in ends:
                outputs, state = self._along(data, sizes, next(began), f"_l{layer}{end}", backwards=bool(end))
                made.append(outputs)
                last.append(state)
            data = made[0] if len(made) == 1 else torch.cat(made, -1)
        return data, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _along(
        self, data: Tensor, sizes: list[int], state: State, own: str, *, backwards: bool
    ) -> tuple[Tensor, State]:
        """One layer in one direction; a sequence that is over, or has not begun, keeps its state."""
        given = list(self.from_inputs(data, own).split(sizes))
        made = given[:]
        for at in reversed(range(len(sizes))) if backwards else range(len(sizes)):
            now, size = state, sizes[at]
            if size < state[0].shape[0]:
                now = tuple(part[:size] for part in state)
            after = self.step(given[at], now, own)
            made[at] = after[0]
            if size < state[0].shape[0]:
                after = tuple(torch.cat([new, part[size:]]) for new, part in zip(after, state, strict=True))
            state = after
        return torch.cat(made), state

    def _begun(self, data: Tensor, sizes: list[int], first: State | None, count: int) -> Iterator[State]:
        widths = self.proj_size or self.hidden_size, self.hidden_size
        shapes = [(count, sizes[0], width) for width in widths[: 2 if isinstance(self, _Long) else 1]]
        if first is None:
            first = tuple(data.new_zeros(shape) for shape in shapes)
        if [tuple(part.shape) for part in first] != shapes:
            raise InvalidInput(
                f"a first state of shapes {[tuple(part.shape) for part in first]}",
                f"{shapes}: (layers times directions, batch, hidden)",
                "Leave hx= out for zeros.",
            )
        return zip(*first, strict=True)

    def _stated(self, hx: Any) -> State:
        return tuple(hx) if isinstance(self, _Long) else (hx,)

    def _given_back(self, state: State) -> Any:
        return state if isinstance(self, _Long) else state[0]

    def whole(self) -> nn.Module:
        """The module that this was made of, its parameters laid out as cuDNN wants them, where that runs it."""
        found = super().whole()
        assert isinstance(found, nn.RNNBase)
        found.flatten_parameters()
        return found

    def flatten_parameters(self) -> None:
        """Nothing: there is no memory to be laid out anew."""


def _arranged(state: State, order: Tensor | None) -> State:
    return state if order is None else tuple(part.index_select(1, order) for part in state)


class _Cell(_Gated):
    """One step of one layer."""

    @classmethod
    def parts(cls, whole: nn.Module) -> dict[str, str]:
        """`ih` and `hh`."""
        del whole
        return {"ih": "weight_ih", "hh": "weight_hh"}

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # noqa: A002 - torch's own name
        """As the cell it was made of: the state after `input`, of a batch or of one sample."""
        paired = isinstance(self, _Long)
        if hx is None:
            zero = input.new_zeros((*input.shape[:-1], self.hidden_size))
            hx = (zero, zero) if paired else zero
        after = self.step(self.from_inputs(input, ""), tuple(hx) if paired else (hx,), "")
        return after if paired else after[0]


@composite(nn.RNN)
class ComposedRNN(_Plain, _Sequence):
    """``h = tanh(W x + b + V h + c)``, or with relu: `nn.RNN` of linear layers."""


@composite(nn.LSTM)
class ComposedLSTM(_Long, _Sequence):
    """`nn.LSTM` of linear layers, projections and all."""

    def _run(self, data: Tensor, sizes: list[int], first: State | None) -> tuple[Tensor, State]:
        """In autocast's precision, as torch gives all but projections, and packed sequences unless they are of one length."""
        outputs, last = super()._run(data, sizes, first)
        # On meta, which autocast does not know, there are no numbers.
        if self.proj_size or outputs.dtype == torch.float64 or outputs.is_meta:
            return outputs, last
        if not torch.is_autocast_enabled(outputs.device.type):
            return outputs, last
        dtype = torch.get_autocast_dtype(outputs.device.type)
        return outputs.to(dtype), tuple(part.to(dtype) for part in last)


@composite(nn.GRU)
class ComposedGRU(_Reset, _Sequence):
    """`nn.GRU` of linear layers."""


@composite(nn.RNNCell)
class ComposedRNNCell(_Plain, _Cell):
    """`nn.RNNCell` of linear layers."""


@composite(nn.LSTMCell)
class ComposedLSTMCell(_Long, _Cell):
    """`nn.LSTMCell` of linear layers."""


@composite(nn.GRUCell)
class ComposedGRUCell(_Reset, _Cell):
    """`nn.GRUCell` of linear layers."""
