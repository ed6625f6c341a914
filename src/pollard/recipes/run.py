"""From a recipe to its run folder: a stage whose output exists is skipped, so the same call resumes or reports."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from pollard import data
from pollard.errors import InvalidInput, PollardError
from pollard.formats.store import save_tensors
from pollard.pruning.plan import Plan
from pollard.recipes.build import build
from pollard.recipes.folder import EVENTS, MODEL, PLAN, RESULT, locked_folder, write_json
from pollard.recipes.models import layer_shapes, layer_sizes
from pollard.recipes.recipe import Recipe
from pollard.recipes.result import RunResult
from pollard.report.measure import module_bytes, peak_rss_bytes, rss_bytes
from pollard.training import (
    Examples,
    Observer,
    Outputs,
    ProgressBar,
    TensorBoard,
    Trained,
    generator,
    read_metrics,
    train,
)
from pollard.training.loop import METRICS


def run(
    recipe: Recipe,
    out: Path | str,
    *,
    progress: bool = True,
    compare: Literal["dense"] | None = None,
    tensorboard: bool = False,
    threads: int | None = None,
    checkpoint_steps: int = 0,
) -> RunResult:
    """Run `recipe` in `out`/<its digest>, or go on with it, or report what is there.

    The folder comes to hold recipe.json, plan.safetensors, metrics.jsonl, checkpoint.safetensors, model.safetensors and
    result.json. With `compare="dense"` the dense twin runs in a folder and a process of its own, so that its peak memory is
    its own too. `threads` sets torch's thread count; results are bit-equal for equal counts. `checkpoint_steps`
    checkpoints within epochs too. Raises StoreError when another process runs the same recipe in `out`, DataError when
    data is missing, TrainingDiverged when the loss is not finite.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with locked_folder(recipe, Path(out)) as folder:
        if (folder / RESULT).exists():
            result = replace(RunResult.read(folder), reused=True)
        else:
            result = _run(recipe, folder, progress, tensorboard, checkpoint_steps)
        if compare == "dense" and result.dense is None and recipe.method != "dense":
            result = replace(result, dense=_twin_in_own_process(recipe, Path(out), progress).to_dict(), reused=False)
            result.save()
    return result


def _run(recipe: Recipe, folder: Path, progress: bool, tensorboard: bool, checkpoint_steps: int) -> RunResult:
    baseline = rss_bytes()
    examples, evaluation, sizes = _load(recipe)
    stored = Plan.load(folder / PLAN) if (folder / PLAN).exists() else None
    model, plan = build(recipe, sizes, examples, stored)
    if plan is not None and stored is None:
        plan.save(folder / PLAN)
    observers: list[Observer] = []
    if progress:
        observers.append(ProgressBar())
    if tensorboard:
        observers.append(TensorBoard(folder / EVENTS))
    outputs = Outputs(
        folder=folder,
        identity=recipe.digest,
        checkpoint_steps=checkpoint_steps,
        observers=observers,
        gauges={"peak_rss_bytes": peak_rss_bytes, "baseline_rss_bytes": lambda: baseline},
    )
    trained = train(model, examples, evaluation, recipe.options(), outputs=outputs)
    save_tensors(folder / MODEL, model.state_dict(), {"recipe": recipe.to_dict()})
    result = _result(recipe, folder, layer_shapes(sizes), plan, trained)
    result.save()
    return result


def _load(recipe: Recipe) -> tuple[Examples, dict[str, Examples], tuple[int, ...]]:
    loaded = data.load(recipe.data)
    sizes = layer_sizes(recipe.model, loaded.features, loaded.classes)
    evaluation = {"test": Examples(loaded.test_x, loaded.test_y)}
    if not recipe.validation:
        return Examples(loaded.train_x, loaded.train_y), evaluation, sizes
    order = torch.randperm(len(loaded.train_x), generator=generator(recipe.seed, "validation"))
    held_out = round(recipe.validation * len(order))
    if not 0 < held_out < len(order):
        raise InvalidInput(
            f"validation {recipe.validation} of {len(order)} examples",
            "at least one example on each side",
            "Use 0 for none.",
        )
    evaluation["validation"] = Examples(loaded.train_x[order[:held_out]], loaded.train_y[order[:held_out]])
    return Examples(loaded.train_x[order[held_out:]], loaded.train_y[order[held_out:]]), evaluation, sizes


def _result(
    recipe: Recipe, folder: Path, shapes: Mapping[str, tuple[int, int]], plan: Plan | None, trained: Trained
) -> RunResult:
    weights = {name: math.prod(shape) for name, shape in shapes.items()}
    kept = weights if plan is None else {name: topology.nnz for name, topology in plan.items()}
    record, lines = trained.record, read_metrics(folder / METRICS)
    return RunResult(
        folder=folder,
        recipe=recipe,
        test_accuracy=record["test_accuracy"],
        test_loss=record["test_loss"],
        train_loss=record["train_loss"],
        validation_accuracy=record.get("validation_accuracy"),
        validation_loss=record.get("validation_loss"),
        density=sum(kept.values()) / sum(weights.values()),
        densities={name: kept[name] / weights[name] for name in weights},
        nnz=sum(kept.values()),
        weights=sum(weights.values()),
        bytes=module_bytes(trained.model, trained.optimizer),
        peak_rss_bytes=int(max(peak_rss_bytes(), *(line["peak_rss_bytes"] for line in lines))),
        baseline_rss_bytes=int(lines[0]["baseline_rss_bytes"]),
        seconds_per_step=trained.seconds_per_step,
        epochs=recipe.epochs,
        steps=trained.steps,
        threads=torch.get_num_threads(),
        versions=versions(),
    )


def _twin_in_own_process(recipe: Recipe, out: Path, progress: bool) -> RunResult:
    twin = recipe.twin()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        write_json(path, twin.to_dict())
        command = [sys.executable, "-m", "pollard.recipes", str(path), str(out), f"--threads={torch.get_num_threads()}"]
        status = subprocess.run(command if progress else [*command, "--quiet"], check=False).returncode
    if status:
        raise PollardError(
            f"exit status {status} of the dense twin's process",
            "status 0",
            f"Its own message is above; the result of {recipe.digest} itself is kept.",
        )
    return RunResult.read(out / twin.digest)


def versions() -> dict[str, str]:
    """Of everything that a result depends on."""
    return {name: version(name) for name in ("pollard", "torch", "numpy", "llvmlite")} | {
        "python": platform.python_version()
    }
