"""What went through a layer, and from it the gradient of any weight, kept or not, a block of rows at a time.

``dL/dW = dY^T X``: the inputs X and the gradients of the outputs dY of a pass say everything about the gradient of the
dense weight, in memory proportional to the batch. No gradient of all weights ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pollard.errors import InvalidInput
from pollard.formats.topology import Topology
from pollard.ops.matmul import value_grad
from pollard.training import processes
from pollard.training.recording import Product, Recorder, Source, parameter_of
from pollard.training.remainder import Remainder

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
    """Inputs `x` `(batch, in)` and gradients `dy` `(batch, out)` of the outputs, of one pass in the given step.

    source: x, or what makes it again whenever it is asked for.
    """

    step: int
    source: Source
    dy: Tensor

    @property
    def x(self) -> Tensor:
        """The inputs."""
        return self.source if isinstance(self.source, Tensor) else self.source()


def _numbers(source: Source) -> Tensor:
    # Unfolded images hold no others than the images.
    return source if isinstance(source, Tensor) else source.images


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
        self.recorder = Recorder(layer, self)
        self._remainder = Remainder()
        self._sum: Tensor | None = None
        self._step = self._folded = 0

    def attach(self) -> None:
        """Be there when the layer runs: from before a compiler looks at it, which would not notice later."""
        self.recorder.attach()

    def detach(self) -> None:
        """Watch no longer, ever."""
        self.stop()
        self.recorder.detach()

    def watch(self, step: int) -> None:
        """Keep what goes through the layer from now on, as of `step`."""
        self._fold()
        self._remainder.forget()
        self._step = step
        self.recorder.watch()

    def stop(self) -> None:
        """Watch no longer for now, and forget what was seen; a dense running sum goes on."""
        self._fold()
        self._remainder.forget()
        self.seen = []
        self.recorder.stop()

    def settle(self) -> None:
        """Let passes of this step count as much as `.grad` says, before an optimizer or an update looks at it.

        What was zeroed or thrown away since counts nothing; what was clipped or unscaled counts as much less. All processes
        call this.
        """
        if self.recorder.watching:
            self._settle(together=self.decay != 1.0 or self.dense)

    def before(self) -> None:
        """More is about to be added to `.grad`."""
        self._settle()

    @torch.no_grad()
    def added(self, products: list[Product]) -> None:
        """These were."""
        for source, dy in products:
            own = source.reshape(-1, source.shape[-1]) if isinstance(source, Tensor) else source
            self.seen.append(Pass(self._step, own, dy.reshape(-1, dy.shape[-1])))
        self._remainder.note(self._gradient())

    def forget(self) -> None:
        """Nothing was ever seen."""
        self.seen, self._sum = [], None

    @torch.no_grad()
    def _settle(self, *, together: bool = False) -> None:
        gradient = self._gradient()
        left = self._remainder.of(gradient, together=together)
        if left != 1.0:
            earlier = [each for each in self.seen if each.step != self._step]
            now = self.seen[len(earlier) :] if left else []
            self.seen = [*earlier, *(each._replace(dy=each.dy * left) for each in now)]
            self._remainder.note(gradient)

    def _gradient(self) -> Tensor | None:
        gradient = parameter_of(self.layer).grad
        return None if gradient is None else gradient.detach()

    def _fold(self) -> None:
        """Add the passes of this step to the dense running sum, once."""
        if self.dense and self._folded != self._step and (self.seen or self._sum is not None):
            # Of this process alone: means are for what growth looks at, or a dense sum would travel each step.
            self._sum = self._own_rows(0, self._shape[0])
            self.seen = []
        self._folded = self._step

    @property
    def _shape(self) -> tuple[int, int]:
        return self.layer.out_features, self.layer.in_features  # type: ignore[return-value]  # both storages have them

    @property
    def step(self) -> int:
        """The step that is watched."""
        return self._step

    @property
    def empty(self) -> bool:
        """Whether nothing was seen in this step."""
        return not any(each.step == self._step for each in self.seen)

    def fault(self) -> InvalidInput | None:
        """What keeps growth from choosing by these passes, if anything does."""
        gradient = self._gradient()
        # Among several processes it may be that of another, whose examples used this layer.
        if self.empty and gradient is not None and processes.count() == 1 and bool(gradient.any()):
            return InvalidInput(
                f"a gradient of layer {self.name!r} from no pass through it that was seen in step {self._step}",
                "gradients that loss.backward() has added to .grad since the last step",
                "Call the layer itself, and loss.backward(), rather than assign to .grad. Where a model was compiled before "
                "its layers were made sparse, or one like it, call torch.compiler.reset() first.",
            )
        if self.recorder.third:
            return InvalidInput(
                f"derivatives of the third order through layer {self.name!r}",
                "at most gradients of gradients, as of a penalty on them",
                "Take the step of an update without them, or a method that does not look at gradients, such as set.",
            )
        if all(is_finite(_numbers(each.source)) and is_finite(each.dy) for each in self.seen):
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
        for each in self.seen:
            share = self.decay ** (self._step - each.step)
            # Under autocast passes may come in bfloat16, in which sums would tie.
            inputs = each.x
            inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
            upstream = each.dy[:, first:last].to(inputs.dtype).t()
            if total is None:
                total = upstream @ inputs
                if share != 1.0:
                    total *= share
            else:
                total.addmm_(upstream, inputs, alpha=share)
        return self._zeros(last - first, self._shape[1]) if total is None else total

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=parameter_of(self.layer).device)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(parameter_of(self.layer).dtype, torch.float32)

    def scores(self, topology: Topology, first: int, last: int) -> Tensor:
        """The magnitudes of the dense gradient summed over each grain of row groups `first` to `last`: `(last - first, width)`.

        On the CPU, where topologies are.
        """
        rows = topology.pattern.rows
        return topology.pattern.grain_sum(self.rows(first * rows, last * rows).abs_()).cpu()

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
        for each in self.seen:
            x = each.x
            found = value_grad(each.dy.to(x.dtype), x, topology)
            if each.step != self._step:
                found *= self.decay ** (self._step - each.step)
            total = found if total is None else total.add_(found)
        return processes.mean(self._zeros(topology.nnz) if total is None else total)

    def flow(self) -> tuple[Tensor, Tensor]:
        """`sum over the batch of |x|` `(in,)` and of `|dy|` `(out,)`: how much each neuron has to do with the gradient."""
        inputs = [each.x.abs().sum(0) for each in self.seen]
        outputs = [dy.abs().sum(0) for _, _, dy in self.seen]
        return self._mean_of(inputs, 1), self._mean_of(outputs, 0)

    def _mean_of(self, sums: list[Tensor], side: int) -> Tensor:
        """The sum of what each pass gives, for inputs (1) or outputs (0); zeros where there was none."""
        return processes.mean(torch.stack([self._zeros(self._shape[side]), *sums]).sum(0)).cpu()

    def signed_flow(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`|sum over the batch of s x|` and `|sum of s dy|` with one random sign s an example: an unbiased look at dY^T X."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        for each in self.seen:
            x = each.x
            signs = _signs(len(x), generator).to(x)
            inputs.append(signs @ x)
            outputs.append(signs.to(each.dy.dtype) @ each.dy)
        return self._mean_of(inputs, 1).abs(), self._mean_of(outputs, 0).abs()

    def state_dict(self) -> dict[str, Any]:
        """What was seen, by all processes, as one process would have seen it."""
        seen = self.seen
        if (others := processes.count()) > 1:
            # Copies, as what is sent of a view is all that it looks at; by the host, as each process has a device of its own.
            sent = [(each.step, each.x.clone().cpu(), (each.dy / others).cpu()) for each in seen]
            everyone = processes.gathered(sent)
            together = [list(zip(*passes, strict=True)) for passes in zip(*everyone, strict=True)]
            seen = [Pass(steps[0], torch.cat(inputs), torch.cat(outputs)) for steps, inputs, outputs in together]
        return {
            "seen": [(each.step, each.x, each.dy) for each in seen],
            "sum": None if self._sum is None else processes.mean(self._sum.clone()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See again what was seen: each process its part, however many there were."""
        device = parameter_of(self.layer).device
        self.seen = [Pass(step, x.to(device), dy.to(device)) for step, x, dy in state["seen"]]
        self._sum = None if state["sum"] is None else state["sum"].to(device)
        self._folded = self._step
        if (others := processes.count()) > 1:
            own = slice(processes.rank(), None, others)
            self.seen = [Pass(each.step, each.x[own], each.dy[own] * others) for each in self.seen]


def fault_of(passes: Sequence[Passes]) -> InvalidInput | None:
    """What keeps growth from choosing by the passes of all layers, if anything does; a single one may have seen nothing.

    A layer that a step did not use, as a part of a mixture, counts as one with gradient zero.
    """
    found = next(filter(None, (each.fault() for each in passes)), None)
    if found or not passes or not all(each.empty for each in passes):
        return found
    return InvalidInput(
        f"an update at step {passes[0].step} without a forward and backward pass through layer {passes[0].name!r}",
        "the gradients of this step",
        "Call loss.backward() before step(). Where a model was compiled before its layers were made sparse, or one like "
        "it, call torch.compiler.reset() first.",
    )


def _signs(examples: int, generator: torch.Generator) -> Tensor:
    """A random sign for each example of this process, -1 or 1, out of those for the examples of all, dealt out in turn."""
    lengths = processes.gathered(examples)
    signs = torch.randint(2, (sum(lengths),), generator=generator, dtype=torch.int64, device="cpu") * 2 - 1
    own = torch.arange(examples, dtype=torch.int64, device="cpu")
    turns = [(own + (other < processes.rank())).clamp(max=length) for other, length in enumerate(lengths)]
    return signs[torch.stack(turns).sum(0)]
