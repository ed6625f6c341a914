"""What went through a layer, and from it the gradient of any weight, kept or not, a block of rows at a time.

``dL/dW = dY^T X``: the inputs X and the gradients of the outputs dY of a pass say everything about the gradient of the
dense weight, in memory proportional to the batch. No gradient of all weights ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.nn.linear import SparseLinear
from pollard.ops.matmul import value_grad
from pollard.training import processes

# Numbers of a block of rows: it stays in the second-level cache while it is scored.
BLOCK = 1 << 19


def is_finite(numbers: Tensor) -> bool:
    """Whether all `numbers` are finite: by the lowest and the highest, which NaN spoils, as `isfinite` takes copies.

    >>> is_finite(torch.tensor([1.0, torch.inf])), is_finite(torch.empty(0))
    (False, True)
    """
    if numbers.dim() == 2 and not numbers.is_contiguous():
        numbers = numbers.t()  # features-first: gone through as it lies
    return not numbers.numel() or all(map(math.isfinite, map(float, torch.aminmax(numbers))))


class Pass(NamedTuple):
    """Inputs `x` `(batch, in)` and gradients `dy` `(batch, out)` of the outputs, of one pass in the given step."""

    step: int
    x: Tensor
    dy: Tensor


class Passes:
    """The passes through `layer` while it is watched.

    whole: compute the gradient of all weights at once, as masked training does; the definition of the blocks.
    decay: how much less a pass counts for each step ago. dense: fold passes into one dense running sum, instead of
    keeping them; as large as the dense weight, for methods that are published so.

    Each process of a group sees passes of its own: what growth asks for is the mean over all, a block at a time.
    """

    def __init__(self, name: str, layer: nn.Module, *, whole: bool = False) -> None:
        self.name, self.layer, self.whole = name, layer, whole
        self.seen: list[Pass] = []
        self.decay, self.dense = 1.0, False
        self._sum: Tensor | None = None
        self._handle: Any = None
        self._step = 0
        self._watching = False
        self.owned = True

    def __getstate__(self) -> dict[str, Any]:
        # The copy of a watched layer brings one of its watcher along, which looks away: unless whom it works for is copied too.
        return {**self.__dict__, "owned": False}

    def attach(self) -> None:
        """Be there when the layer runs: from before a compiler looks at it, which would not notice later."""
        if self._handle is None:
            self._handle = self.layer.register_forward_hook(self._forward)

    def detach(self) -> None:
        """Watch no longer, ever."""
        self.stop()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def watch(self, step: int) -> None:
        """Keep what goes through the layer from now on, as of `step`."""
        self._fold()
        self.attach()
        self._step, self._watching = step, True

    def stop(self) -> None:
        """Watch no longer for now, and forget what was seen; a dense running sum goes on."""
        self._fold()
        self.seen, self._watching = [], False

    def _fold(self) -> None:
        if self.dense and self.seen:
            # Of this process alone: means are for what growth looks at, or a dense sum would travel each step.
            self._sum = self._own_rows(0, self.seen[0].dy.shape[1])
            self.seen = []

    # Compilers leave it to Python. The public name for that, torch.compiler.disable, would load one, 50 MB, for everybody.
    @_disable_dynamo
    def _forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self.owned:
            self.seen, self._sum = [], None
        if not (self.owned and self._watching and output.requires_grad):
            return
        if self._parameter().grad is None:
            # The gradient of earlier passes was thrown away, and so their step: this one begins it anew.
            self.seen = [each for each in self.seen if each.step != self._step]
        # dY is the gradient before a fused ReLU: nothing flows through outputs that it cut off.
        cut = (output <= 0).detach() if getattr(layer, "relu", False) else None
        step, x = self._step, inputs[0].detach()

        def backward(dy: Tensor) -> None:
            upstream = dy.detach() if cut is None else dy.detach().masked_fill(cut, 0.0)
            self.seen.append(Pass(step, x.reshape(-1, x.shape[-1]), upstream.reshape(-1, upstream.shape[-1])))

        output.register_hook(backward)

    _forward.only_watches = True  # type: ignore[attr-defined]  # a function takes attributes; `densify_` asks for this one

    def _parameter(self) -> Tensor:
        parameter = self.layer.values if isinstance(self.layer, SparseLinear) else self.layer.weight
        assert isinstance(parameter, Tensor)
        return parameter

    def fault(self) -> InvalidInput | None:
        """What keeps growth from choosing by these passes, if anything does."""
        if not any(each.step == self._step for each in self.seen):
            return InvalidInput(
                f"an update at step {self._step} without a forward and backward pass through layer {self.name!r}",
                "the gradients of this step",
                "Call loss.backward() before step(), and leave layers out with layers= that not every step uses. Where a model "
                "was compiled before its layers were made sparse, or one like it, call torch.compiler.reset() first.",
            )
        if all(is_finite(x) and is_finite(dy) for _, x, dy in self.seen):
            return None
        return InvalidInput(
            f"inputs or gradients of layer {self.name!r} that are not finite",
            "finite numbers to choose by",
            "Skip the step, as the optimizer would spoil its weights too; look for NaN in inputs and loss.",
        )

    def rows(self, first: int, last: int) -> Tensor:
        """The gradient of rows `first` to `last` of the dense weight: `(last - first, in)`, float32 or float64.

        Steps ago count `decay` times less each.
        """
        return processes.mean(self._own_rows(first, last))

    def _own_rows(self, first: int, last: int) -> Tensor:
        total = None if self._sum is None else self._sum[first:last] * self.decay
        for step, x, dy in self.seen:
            share = self.decay ** (self._step - step)
            # Under autocast passes may come in bfloat16, in which sums would tie.
            inputs = x.to(torch.promote_types(x.dtype, torch.float32))
            upstream = dy[:, first:last].to(inputs.dtype).t()
            if total is None:
                total = upstream @ inputs
                if share != 1.0:
                    total *= share
            else:
                total.addmm_(upstream, inputs, alpha=share)
        assert total is not None
        return total

    def scores(self, topology: Topology, first: int, last: int) -> Tensor:
        """The magnitudes of the dense gradient summed over each grain of row groups `first` to `last`: `(last - first, in)`."""
        rows, (out, width) = topology.pattern.rows, topology.shape
        scores = self.rows(first * rows, min(out, last * rows)).abs_()
        return scores if rows == 1 else scores.view(-1, rows, width).sum(1)

    def block(self, topology: Topology) -> int:
        """How many row groups are looked at at a time."""
        return topology.groups if self.whole else max(1, BLOCK // max(1, topology.pattern.rows * topology.shape[1]))

    def blocks(self, topology: Topology) -> Iterator[tuple[int, Tensor]]:
        """The `scores` of all row groups, some at a time, each with the first of them."""
        step = self.block(topology)
        for group in range(0, topology.groups, step):
            yield group, self.scores(topology, group, min(topology.groups, group + step))

    def at(self, topology: Topology) -> Tensor:
        """The gradient at the weights that `topology` keeps, `(nnz,)`: one kernel, no gradient of the others."""
        total: Tensor | None = None
        for step, x, dy in self.seen:
            found = value_grad(dy.to(x.dtype), x, topology)
            if step != self._step:
                found *= self.decay ** (self._step - step)
            total = found if total is None else total.add_(found)
        assert total is not None
        return processes.mean(total)

    def flow(self) -> tuple[Tensor, Tensor]:
        """`sum over the batch of |x|` `(in,)` and of `|dy|` `(out,)`: how much each neuron has to do with the gradient."""
        inputs = torch.stack([x.abs().sum(0) for _, x, _ in self.seen]).sum(0)
        outputs = torch.stack([dy.abs().sum(0) for _, _, dy in self.seen]).sum(0)
        return processes.mean(inputs), processes.mean(outputs)

    def signed_flow(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`|sum over the batch of s x|` and `|sum of s dy|` with one random sign s an example: an unbiased look at dY^T X."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        for _, x, dy in self.seen:
            signs = _signs(len(x), generator).to(x.dtype)
            inputs.append(signs @ x)
            outputs.append(signs.to(dy.dtype) @ dy)
        return tuple(processes.mean(torch.stack(sums).sum(0)).abs() for sums in (inputs, outputs))  # type: ignore[return-value]  # two of them

    def state_dict(self) -> dict[str, Any]:
        """What was seen, by all processes, as one process would have seen it."""
        seen = self.seen
        if (others := processes.count()) > 1:
            # Copies, as what is sent of a view is all that it looks at.
            everyone = processes.gathered([Pass(step, x.clone(), dy / others) for step, x, dy in seen])
            together = [list(zip(*passes, strict=True)) for passes in zip(*everyone, strict=True)]
            seen = [Pass(steps[0], torch.cat(inputs), torch.cat(outputs)) for steps, inputs, outputs in together]
        return {
            "seen": [tuple(each) for each in seen],
            "sum": None if self._sum is None else processes.mean(self._sum.clone()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See again what was seen: each process its part, however many there were."""
        self.seen, self._sum = [Pass(*each) for each in state["seen"]], state["sum"]
        if (others := processes.count()) > 1:
            own = slice(processes.rank(), None, others)
            self.seen = [Pass(step, x[own], dy[own] * others) for step, x, dy in self.seen]


def _signs(examples: int, generator: torch.Generator) -> Tensor:
    """A random sign for each example of this process, -1 or 1, out of those for the examples of all, dealt out in turn."""
    lengths = processes.gathered(examples)
    signs = torch.randint(2, (sum(lengths),), generator=generator, dtype=torch.int64, device="cpu") * 2 - 1
    own = torch.arange(examples, dtype=torch.int64, device="cpu")
    turns = [(own + (other < processes.rank())).clamp(max=length) for other, length in enumerate(lengths)]
    return signs[torch.stack(turns).sum(0)]
