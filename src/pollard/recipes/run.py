"""From a recipe to its run folder: a stage whose output exists is skipped, so the same call resumes or reports."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from pollard import __version__
from pollard.nn.surgery import sparse_layers
from pollard.pruning.aims import Aims, measure_aims, trainability
from pollard.pruning.plan import Plan
from pollard.recipes.build import SCORED_AT_ONCE, is_born_sparse
from pollard.recipes.dense import dense_weights, in_own_process
from pollard.recipes.device import device_called
from pollard.recipes.folder import EVENTS, FAILURE, MODEL, PLAN, RESULT, common_folder, save_model
from pollard.recipes.moving import Span
from pollard.recipes.phases import phases
from pollard.recipes.pipeline import Pipeline
from pollard.recipes.problem import Problem
from pollard.recipes.recipe import Recipe
from pollard.recipes.result import RunResult
from pollard.report.machine import device_name
from pollard.report.measure import forget_peak_rss, module_bytes, peak_rss_bytes, rss_bytes
from pollard.training import (
    Observer,
    Outputs,
    ProgressBar,
    TensorBoard,
    Trained,
    generator,
    processes,
    read_metrics,
    train,
)
from pollard.training.loop import METRICS

# Training examples that aims are measured on.
MEASURED_ON = 1000


def run(
    recipe: Recipe,
    out: Path | str,
    *,
    device: str = "cpu",
    progress: bool = True,
    compare: Literal["dense"] | None = None,
    aims: bool = False,
    tensorboard: bool = False,
    threads: int | None = None,
    checkpoint_steps: int = 0,
    wait: bool = False,
) -> RunResult:
    """Run `recipe` in `out`/<its digest>, or go on with it, or report what is there.

    The folder comes to hold recipe.json, plan.safetensors, metrics.jsonl, checkpoint.safetensors, model.safetensors and
    result.json; a folder cycle-K of it the same of an earlier cycle. Weights of the trained dense network come from the
    dense twin's folder, and are made there once, in a process of its own, for all recipes that want them. With
    `compare="dense"` the dense twin runs in a folder and a process of its own, so that its peak memory is its own too.
    With `aims`, both aims of pruning are measured once the training is done, on the dense network before and the pruned one.
    `threads` sets torch's thread count; results are bit-equal for equal counts. `checkpoint_steps` checkpoints within
    epochs too. `device`: where examples and networks are, which are scored, pruned and trained there; on the same batches as on
    the CPU, to rounding with its results, and goes on from checkpoints of any other. Raises StoreError when another process runs the same recipe in `out`, unless it is to `wait` for that
    one, DataError when data is missing, InvalidInput when the device is, TrainingDiverged when the loss is not finite.

    Where torch.distributed is in use, all processes call this, and all must see `out`; only the first writes there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    there = device_called(device)
    forget_peak_rss()
    out = Path(out)
    with common_folder(recipe, out, wait=wait) as folder:
        manner = Manner(there, progress, tensorboard, checkpoint_steps)
        if processes.gathered((folder / RESULT).exists())[0]:
            result = replace(RunResult.read(folder), reused=True)
        else:
            result = _run(recipe, out, folder, manner)
        if aims and not result.is_complete:
            result = replace(result, aims=_aims(recipe, out, folder, manner), reused=False)
        if processes.rank() > 0:
            return result
        if not result.reused:
            result.save()
        # Whatever went wrong before, it has not in the end.
        (folder / FAILURE).unlink(missing_ok=True)
        if compare == "dense" and result.dense is None and recipe.method != "dense":
            in_own_process(recipe.twin(), out, device=device, progress=progress)
            result = replace(result, dense=RunResult.read(out / recipe.twin().digest).to_dict(), reused=False)
            result.save()
    return result


@dataclass(frozen=True, slots=True)
class Manner:
    """How a run goes that does not change what it computes."""

    device: torch.device
    progress: bool
    tensorboard: bool
    checkpoint_steps: int

    def outputs(self, recipe: Recipe, baseline: int, folder: Path, stage: str) -> Outputs:
        """Where the training of a `stage` of `recipe` leaves its traces."""
        observers: list[Observer] = []
        if self.progress:
            observers.append(ProgressBar(stage))
        if self.tensorboard:
            observers.append(TensorBoard(folder / EVENTS))
        return Outputs(
            folder=folder,
            identity=recipe.digest,
            checkpoint_steps=self.checkpoint_steps,
            observers=observers,
            gauges={
                "held_bytes": lambda model, optimizer: module_bytes(model, optimizer).total,
                "peak_rss_bytes": lambda *_: peak_rss_bytes(),
                "baseline_rss_bytes": lambda *_: baseline,
            },
        )


def _run(recipe: Recipe, out: Path, folder: Path, manner: Manner) -> RunResult:
    pipeline = _pipeline(recipe, out, folder, manner)
    problem, outputs = pipeline.problem, pipeline.outputs
    model, _ = pipeline.start()
    epoch = math.ceil(len(problem.examples.x) / recipe.batch_size)
    trained = train(
        model,
        problem.examples,
        problem.evaluation,
        recipe.options(),
        method=recipe.moving(Span(recipe.epochs * epoch - round(recipe.schedule_at * epoch), epoch)),
        outputs=outputs(folder, "training"),
        start=recipe.schedule_at,
    )
    if processes.rank() == 0 and not (folder / MODEL).exists():
        save_model(folder / MODEL, model, recipe, problem.ends)
    return _result(recipe, folder, problem, trained)


def _pipeline(recipe: Recipe, out: Path, folder: Path, manner: Manner) -> Pipeline:
    outputs = partial(manner.outputs, recipe, rss_bytes())
    dense = partial(dense_weights, recipe.twin(), out, device=str(manner.device), progress=manner.progress)
    return Pipeline(recipe, Problem.of(recipe).on(manner.device), folder, dense, outputs)


def _aims(recipe: Recipe, out: Path, folder: Path, manner: Manner) -> Aims:
    """Both aims of the run's last pruning, on a thousand training examples."""
    pipeline = _pipeline(recipe, out, folder, manner)
    examples = pipeline.problem.examples
    order = torch.randperm(len(examples.x), generator=generator(recipe.seed, "aims"), dtype=torch.int64, device="cpu")[
        :MEASURED_ON
    ].to(manner.device)
    batch = examples.x[order], examples.y[order]
    found = measure_aims(pipeline.before(), Plan.load(folder / PLAN), batch, chunk_size=SCORED_AT_ONCE)
    if is_born_sparse(recipe):
        return replace(found, loss_before=None, accuracy_before=None, first_order=None, second_order=None)
    return found


def _result(recipe: Recipe, folder: Path, problem: Problem, trained: Trained) -> RunResult:
    weights = {name: math.prod(shape) for name, shape in problem.shapes.items()}
    topologies = {name: layer.topology for name, layer in sparse_layers(trained.model).items()}
    kept = weights | {name: topology.nnz for name, topology in topologies.items()}
    density = sum(kept.values()) / sum(weights.values())
    record = trained.record
    own = read_metrics(folder / METRICS)
    lines = [line for path in (folder / METRICS, *folder.glob(f"cycle-*/{METRICS}")) for line in read_metrics(path)]
    return RunResult(
        folder=folder,
        recipe=recipe,
        test_accuracy=record["test_accuracy"],
        test_loss=record["test_loss"],
        train_loss=record["train_loss"],
        validation_accuracy=record.get("validation_accuracy"),
        validation_loss=record.get("validation_loss"),
        density=density,
        explored_rate=record.get("explored_rate", density),
        training_flops=record.get("training_flops", density),
        phases=phases(recipe, problem, record.get("training_flops", density)),
        dead_neurons=sum(int((each.fan_in() == 0).sum()) for each in topologies.values()),
        densities={name: kept[name] / weights[name] for name in weights},
        trainability=trainability([line["test_accuracy"] for line in own], [line["lr"] for line in own]),
        nnz=sum(kept.values()),
        weights=sum(weights.values()),
        bytes=module_bytes(trained.model, trained.optimizer),
        peak_rss_bytes=int(max(peak_rss_bytes(), *(line["peak_rss_bytes"] for line in lines))),
        baseline_rss_bytes=int(lines[0]["baseline_rss_bytes"]),
        seconds_per_step=trained.seconds_per_step,
        epochs=recipe.epochs,
        steps=trained.steps,
        threads=torch.get_num_threads(),
        processes=processes.count(),
        device=device_name(problem.device),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Of everything that a result depends on."""
    others = {name: version(name) for name in ("torch", "numpy", "llvmlite")}
    return {"pollard": __version__} | others | {"python": platform.python_version()}
