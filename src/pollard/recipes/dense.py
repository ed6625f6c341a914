"""What other runs take from a dense one: its result, and its weights at any epoch, made where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from pollard.errors import PollardError
from pollard.formats.store import save_tensors
from pollard.recipes.build import initial
from pollard.recipes.device import device_called
from pollard.recipes.folder import MODEL, SNAPSHOTS, load_model, locked_folder, write_json
from pollard.recipes.problem import Problem
from pollard.recipes.recipe import Recipe
from pollard.training import Observer, Outputs, ProgressBar, processes, train


def dense_weights(
    recipe: Recipe, out: Path, epoch: float, *, device: str = "cpu", progress: bool = False
) -> dict[str, Tensor]:
    """The parameters of dense `recipe` after `epoch` epochs, from its run folder in `out`.

    Where nothing holds them, a process of its own trains the network: to the end, which makes it a finished run, or to
    `epoch`. Processes that want the same wait for the first of them.
    """
    path = _path(recipe, out, epoch)
    with processes.failing_together():
        if processes.rank() == 0 and not path.exists():
            stop = [] if epoch == recipe.epochs else [f"--snapshot={epoch!r}"]
            in_own_process(recipe, out, "--wait", *stop, device=device, progress=progress)
    return load_model(path)[0]


def save_snapshot(
    recipe: Recipe, out: Path, epoch: float, *, device: str = "cpu", progress: bool = True, checkpoint_steps: int = 0
) -> None:
    """Leave the parameters that dense `recipe` has after `epoch` epochs in its run folder, whatever else is there.

    The network is trained from the start, in a folder of its own: what the run itself has written stays as it is.
    Training repeats bit for bit on the CPU, so these are the weights that the run had, or will have, at that epoch.
    """
    with locked_folder(recipe, out, wait=True):
        path = _path(recipe, out, epoch)
        if path.exists():
            return
        there = device_called(device)
        problem, work = Problem.of(recipe).on(there), path.with_suffix("")
        model = initial(recipe, problem.ends, on=there)
        observers: list[Observer] = [ProgressBar(f"dense, to epoch {epoch:g}")] if progress else []
        outputs = Outputs(folder=work, identity=recipe.digest, checkpoint_steps=checkpoint_steps, observers=observers)
        train(model, problem.examples, {}, recipe.options(), outputs=outputs, stop=epoch)
        save_tensors(path, model.state_dict(), {"recipe": recipe.to_dict(), "epoch": epoch})
        shutil.rmtree(work)


def in_own_process(recipe: Recipe, out: Path, *options: str, device: str, progress: bool) -> None:
    """Run `recipe` in `out` in a process of its own, so that its memory is its own; raises PollardError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        write_json(path, recipe.to_dict())
        told = path.with_suffix(".error")
        command = [sys.executable, "-m", "pollard.recipes", str(path), str(out), f"--threads={torch.get_num_threads()}"]
        command += [f"--error-file={told}", f"--parent={os.getpid()}", f"--device={device}"]
        status = subprocess.run([*command, *options, *([] if progress else ["--quiet"])], check=False).returncode
        error = told.read_text("utf-8") if told.exists() else f"exit status {status}"
    if status:
        raise PollardError(
            f"a dense twin that failed: {error}",
            "its weights, or its result",
            "Mend that; what else is done stays, and the same command goes on.",
        )


def _path(recipe: Recipe, out: Path, epoch: float) -> Path:
    folder = out / recipe.digest
    return folder / MODEL if epoch == recipe.epochs else folder / SNAPSHOTS / f"epoch-{epoch:.12g}.safetensors"
