"""The one training loop, for sparse, masked and dense networks alike."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from pollard.errors import InvalidInput, PollardError, StoreError
from pollard.nn.surgery import sparse_layers
from pollard.training import processes
from pollard.training.augmentation import augmented, draw
from pollard.training.checkpoint import Checkpoint
from pollard.training.evaluation import Examples, evaluate, require_pairs
from pollard.training.methods.method import Method
from pollard.training.metrics import MetricsLog, Number
from pollard.training.observers import Observer
from pollard.training.optimizers import make_optimizer
from pollard.training.options import TrainingOptions
from pollard.training.placing import Losses, device_of, in_own_order, sent
from pollard.training.precision import LossFunction, bring_, output_and_loss
from pollard.training.randomness import generator, stream
from pollard.training.sparsifier import Sparsifier

Gauges = Mapping[str, Callable[[nn.Module, Optimizer], Number]]

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


class TrainingDiverged(PollardError, ArithmeticError):
    """The loss of a batch is infinite or not a number."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """How training ended.

    steps: how many were taken. resumed_at: the step of the schedule that it went on from, or began at. record: the last
    line of metrics.
    """

    steps: int
    resumed_at: int
    seconds_per_step: float
    record: Mapping[str, Number]
    model: nn.Module
    optimizer: Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Where a run leaves its traces.

    folder: of the checkpoint and the metrics file; None keeps neither. identity: names the run, guards its checkpoint.
    checkpoint_steps: also checkpoint every so many steps within an epoch; 0 for epochs only.
    observers: watch the run. gauges: figures read off model and optimizer at each epoch's end into its line of
    metrics.
    """

    folder: Path | None = None
    identity: str = ""
    checkpoint_steps: int = 0
    observers: Sequence[Observer] = ()
    gauges: Gauges = field(default_factory=dict)


def train(
    model: nn.Module,
    examples: Examples,
    evaluation: Mapping[str, Examples],
    options: TrainingOptions,
    *,
    method: Method | None = None,
    loss_fn: LossFunction = cross_entropy,
    outputs: Outputs | None = None,
    start: float = 0.0,
    stop: float | None = None,
) -> Trained:
    """Train `model` in place on `examples`; every epoch ends with an evaluation on each named set, and a checkpoint.

    method: moves the topology of sparse layers while they train; None leaves it as it is. Its steps are those taken here.

    A `model` that `options` want in bfloat16 is brought to it, and left in it.

    start, stop: the epochs of the schedule between which to train, whole or not; by default all of `options.epochs`.
    What stops at an epoch and goes on from its checkpoint ends where one training would have ended.

    ::

        go on from the checkpoint, if there is one
        for each epoch that is left between start and stop:
            order the examples by (seed, epoch)
            for each batch that is left:
                loss <- of the model on the batch; stop if it is not finite
                weights <- the optimizer's step along the gradients, at the schedule's learning rate; the method's update
                checkpoint, every so many steps
            evaluate; write the metrics; checkpoint

    Where torch.distributed is in use all processes call this with the same arguments. They start from the weights of the
    first; each takes its part of every batch, and gradients are averaged. Only the first writes and is watched; all must
    see its folder, and any number of them may go on from its checkpoint. A run killed at any moment and started
    again ends with the same weights, bit for bit, on the same number of threads.
    `loss_fn(output, target)` is a mean over the batch. Raises TrainingDiverged on a loss that is not finite, StoreError
    on a checkpoint that is damaged, of another run or past `stop`, InvalidInput when examples and targets do not pair up
    or are elsewhere than `model`, no step lies between `start` and `stop`, or `model` is a DistributedDataParallel.

    On another device than the CPU, orders and changes of examples are those of the CPU, noise is not. Losses are read 50 at a
    time, before anything is written: observers hear of so many steps at once, and weights may have moved on from a loss that
    is not finite.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> points = Examples(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> trained = train(model, points, {"test": points}, TrainingOptions(epochs=30, batch_size=2))
    >>> trained.steps, trained.record["test_accuracy"]
    (30, 1.0)
    """
    for name, part in {"train": examples, **evaluation}.items():
        require_pairs(name, part, device_of(model))
    run = _Run(model, examples, options, loss_fn=loss_fn, outputs=outputs or Outputs(), method=method)
    run.between(start, options.epochs if stop is None else stop)
    # Dropout draws from torch's global generator: it gets a stream of its own here, and is given back as it was.
    with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []), ExitStack() as stack:
        torch.manual_seed(stream(options.seed, "noise"))
        run.open(stack)
        while run.step < run.last:
            epoch, done = divmod(run.step, run.steps_per_epoch)
            order = torch.randperm(
                len(examples.x), generator=generator(options.seed, f"epoch {epoch}"), dtype=torch.int64, device="cpu"
            )
            for batch in order.split(options.batch_size)[done : done + run.last - run.step]:
                run.take_step(batch)
                run.checkpoint_within_epoch()
            run.finish_epoch(evaluation)
    return Trained(len(run.seconds), run.resumed_at, median(run.seconds), run.record, model, run.optimizer)


class _Run:
    """The moving parts of `train`: what a checkpoint holds, and how it changes."""

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        options: TrainingOptions,
        *,
        loss_fn: LossFunction,
        outputs: Outputs,
        method: Method | None,
    ) -> None:
        if processes.bare(model) is not model:
            raise InvalidInput(
                "a model within DistributedDataParallel",
                "the model that it is wrapped around: gradients are averaged here",
                "Pass model.module, and leave DistributedDataParallel out.",
            )
        self.model, self.examples, self.options, self.loss_fn, self.outputs = model, examples, options, loss_fn, outputs
        self.device = device_of(model)
        self.unread, self.began = Losses(self.device), 0.0
        self.observers = outputs.observers if processes.rank() == 0 else ()
        processes.require_agreement(_fingerprints(model), 0)
        processes.start_alike(model)
        self.steps_per_epoch = math.ceil(len(examples.x) / options.batch_size)
        self.steps = self.steps_per_epoch * options.epochs
        self.learning_rate = options.learning_rate(self.steps)
        bring_(model, options.precision)
        self.optimizer = make_optimizer(model, options)
        self.sparsifier = Sparsifier(model, self.optimizer, method, seed=options.seed) if method else None
        self.identity = outputs.identity or _identity(options)
        # known: up to which step losses were read.
        self.step = self.known = self.resumed_at = self.first = 0
        self.last = self.steps
        self.loss_sum = 0.0
        self.seconds: list[float] = []
        self.record: dict[str, Number] = {}
        self.metrics: MetricsLog | None = None

    def between(self, start: float, stop: float) -> None:
        """Train only the steps between these epochs of the schedule; raises InvalidInput where there is none."""
        steps = [round(e * self.steps_per_epoch) for e in (start, stop) if 0 <= e <= self.options.epochs]
        if len(set(steps)) < 2 or start > stop:
            raise InvalidInput(
                f"training from epoch {start:g} to epoch {stop:g}",
                f"at least one step, between epochs 0 and {self.options.epochs}",
                f"An epoch has {self.steps_per_epoch} steps.",
            )
        self.first, self.last = steps
        self.step = self.known = self.resumed_at = self.first
        if self.first:
            self.identity += f" from step {self.first}"

    def open(self, stack: ExitStack) -> None:
        """Restore the checkpoint, if any; open the metrics file and the observers until `stack` closes."""
        with processes.failing_together():
            self._go_on(stack)
        found = processes.gathered(self.step)
        if len(set(found)) > 1:
            raise StoreError(
                f"checkpoints of steps {found} on ranks 0 to {len(found) - 1} in {self.outputs.folder}",
                "one checkpoint that all ranks see",
                "Put the folder where all machines can read it.",
            )
        self.model.train()
        for observer in self.observers:
            observer.begin(self.step, self.last)
            stack.callback(observer.end)

    def _go_on(self, stack: ExitStack) -> None:
        folder = self.outputs.folder
        if folder is None:
            return
        if processes.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
        size = self._restore(folder / CHECKPOINT)
        if processes.rank() == 0:
            self.metrics = stack.enter_context(MetricsLog(folder / METRICS, size))

    def take_step(self, batch: Tensor) -> None:
        """One batch: forward, backward, update."""
        if self.step == self.known:
            self.began = time.perf_counter()
        lr = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if (rank := processes.rank()) or self.device.type != "cpu":
            # Other noise than the first process's on the CPU is drawn anew at each step: nothing of it is to be saved.
            torch.manual_seed(stream(self.options.seed, f"noise of rank {rank} at step {self.step}"))
        own, share = processes.part_of(batch)
        drawn = draw(self.options.augment, len(batch), self.options.seed, self.step)
        there = [sent(each, self.device) for each in (own, *(processes.part_of(each)[0] for each in drawn))]
        x, y = (part[there[0]] for part in self.examples)
        x = in_own_order(augmented(self.options.augment, x, there[1:]))
        loss = output_and_loss(self.model, x, y, self.loss_fn, self.options.precision)[1] * share
        self.unread.add(processes.mean(loss.detach().clone()))
        values = self._looked() if self.unread.due else []
        self.optimizer.zero_grad()
        loss.backward()
        processes.average_gradients(self.model)
        (self.sparsifier or self.optimizer).step()
        self.step += 1
        self._account(values)

    def settle(self) -> None:
        """Read the losses of all steps that were taken, and account for them."""
        self._account(self._looked())

    def _looked(self) -> list[float]:
        """The losses since step `known`; raises TrainingDiverged at one that is not finite."""
        values = self.unread.read()
        for step, value in enumerate(values, self.known):
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"loss {value} at step {step + 1} of {self.steps}, learning rate {self.learning_rate(step):.3g}",
                    "a finite loss",
                    "Lower lr, warm it up, or look for NaN in the inputs; metrics and checkpoint are kept.",
                )
        return values

    def _account(self, values: Sequence[float]) -> None:
        """Enter the losses `values` of the steps since `known`, and their seconds."""
        seconds = time.perf_counter() - self.began
        for value in values:
            left = len(self.examples.x) - self.known % self.steps_per_epoch * self.options.batch_size
            self.loss_sum += value * min(self.options.batch_size, left)
            self.seconds.append(seconds / len(values))
            self.known += 1
            for observer in self.observers:
                observer.after_step(self.known, value)

    def checkpoint_within_epoch(self) -> None:
        """Checkpoint if this step is due; the last step of an epoch is not, as its evaluation would be skipped."""
        every = self.outputs.checkpoint_steps
        if every and self.step % every == 0 and self.step % self.steps_per_epoch:
            self.settle()
            self._save()

    def finish_epoch(self, evaluation: Mapping[str, Examples]) -> None:
        """Evaluate, write the line of metrics of the epoch, or of what was trained of it, checkpoint."""
        self.settle()
        opening = (self.step - 1) // self.steps_per_epoch * self.steps_per_epoch
        began = max(self.first, opening)
        seen = min((self.step - opening) * self.options.batch_size, len(self.examples.x))
        epochs = self.step / self.steps_per_epoch
        processes.average_buffers(self.model)
        record: dict[str, Number] = {
            "epoch": int(epochs) if epochs.is_integer() else epochs,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self.loss_sum / (seen - (began - opening) * self.options.batch_size),
        }
        for name, part in evaluation.items():
            chosen = self.options
            result = evaluate(
                self.model, part, loss_fn=self.loss_fn, batch_size=chosen.batch_size, precision=chosen.precision
            )
            record |= {f"{name}_loss": result.loss, f"{name}_accuracy": result.accuracy}
        record["seconds"] = sum(self.seconds[began - self.step :])
        record |= {} if self.sparsifier is None else self.sparsifier.metrics()
        record |= {name: read(self.model, self.optimizer) for name, read in self.outputs.gauges.items()}
        self.record = record
        if isinstance(record["epoch"], int):
            self.loss_sum = 0.0
        if self.metrics is not None:
            self.metrics.write(record)
        self._save()
        for observer in self.observers:
            observer.after_epoch(record)

    def _save(self) -> None:
        if self.outputs.folder is None:
            return
        processes.average_buffers(self.model)
        topologies = {} if self.sparsifier is None else self.sparsifier.own_state_dict()
        with processes.failing_together():
            self._write(topologies)

    def _write(self, topologies: Mapping[str, Any]) -> None:
        if self.metrics is None:
            return
        Checkpoint(
            identity=self.identity,
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            sparsifier=topologies,
            noise=torch.get_rng_state(),
            seconds=torch.tensor(self.seconds, dtype=torch.float32, device="cpu"),
            loss_sum=self.loss_sum,
            metrics_bytes=self.metrics.size,
            record=self.record,
        ).save(self.metrics.path.with_name(CHECKPOINT))

    def _restore(self, path: Path) -> int:
        if not path.exists():
            return 0
        saved = Checkpoint.load(path, self.identity)
        if saved.step > self.last:
            raise StoreError(
                f"{path} at step {saved.step}", f"at most step {self.last}, where to stop", "Give it another folder."
            )
        saved.restore(self.model, self.optimizer, self.sparsifier)
        torch.set_rng_state(saved.noise)
        self.step = self.known = self.resumed_at = saved.step
        self.loss_sum, self.record, self.seconds = saved.loss_sum, dict(saved.record), saved.seconds.tolist()
        return saved.metrics_bytes


def _identity(options: TrainingOptions) -> str:
    # Checkpoints from before there were these choices are found under what they were called.
    told = repr(options).replace(", precision='float32'", "").replace(", augment=''", "")
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _fingerprints(model: nn.Module) -> dict[str, str]:
    layers = sparse_layers(model) if processes.count() > 1 else {}
    return {name: layer.topology.fingerprint for name, layer in layers.items()}
