"""A run's folder: one recipe, one process at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor, nn

from pollard import reading
from pollard.errors import StoreError
from pollard.formats.store import load_tensors, save_tensors, write_atomic
from pollard.networks import Ends
from pollard.reading import fits
from pollard.recipes.recipe import Recipe
from pollard.training import processes

RECIPE = "recipe.json"
PLAN = "plan.safetensors"
ROUNDS = "rounds.safetensors"
MODEL = "model.safetensors"
SNAPSHOTS = "snapshots"
RESULT = "result.json"
FAILURE = "failure.json"
LOCK = ".lock"
EVENTS = "tensorboard"


@contextmanager
def locked_folder(recipe: Recipe, out: Path, *, wait: bool = False) -> Iterator[Path]:
    """The run folder of `recipe` in `out`, held until the block ends or the process does, however it ends.

    Raises StoreError when it cannot be written, or when another process holds it, unless it is to `wait` for that one.
    """
    folder = out / recipe.digest
    writable_folder(folder)
    try:
        lock = filelock.FileLock(folder / LOCK).acquire(blocking=wait)
    except filelock.Timeout as error:
        raise StoreError(
            f"{folder}, in use by another process",
            "a run folder of its own",
            "Wait for that run, or give another output folder.",
        ) from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    with lock:
        if not (folder / RECIPE).exists():
            write_json(folder / RECIPE, recipe.to_dict())
        yield folder


@contextmanager
def common_folder(recipe: Recipe, out: Path, *, wait: bool = False) -> Iterator[Path]:
    """The run folder for all processes that train together: the first holds it as `locked_folder` does, and may write.

    Raises what that raises, on all of them.
    """
    with ExitStack() as stack:
        folder = out / recipe.digest
        with processes.failing_together():
            if processes.rank() == 0:
                stack.enter_context(locked_folder(recipe, out, wait=wait))
        yield folder


def save_model(path: Path, model: nn.Module, recipe: Recipe, ends: Ends, **told: object) -> None:
    """Write the parameters and buffers of `model` to `path`, with what making it again takes, and what else is `told`."""
    between = {"input_shape": list(ends.input_shape), "classes": ends.classes}
    save_tensors(path, model.state_dict(), {"recipe": recipe.to_dict(), **between, **told})


def load_model(path: Path) -> tuple[dict[str, Tensor], Ends | None]:
    """What `save_model` wrote: parameters and buffers, and the ends of the data, None in files that did not tell them yet.

    Raises StoreError where it cannot be read, and says how to have it again where it is gone.
    """
    if not path.exists():
        raise StoreError(
            f"a finished run whose network is gone, {path}",
            f"{path.name}, which it wrote",
            f"Remove {RESULT} beside it and run the recipe again: it goes on from the last checkpoint, if that is there.",
        )
    state, told = load_tensors(path)
    if "input_shape" not in told:
        return state, None
    shape, classes = told["input_shape"], told.get("classes")
    if not isinstance(shape, list) or not all(fits(size, int) for size in shape) or not isinstance(classes, int):
        raise StoreError(f"{path} of inputs {shape!r} and classes {classes!r}", "their sizes", "Run the recipe again.")
    return state, Ends(tuple(shape), classes)


def writable_folder(folder: Path) -> None:
    """Make `folder` where it is missing; raises StoreError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError(f"{folder}: {error.strerror}", "a folder that can be written", "Give another output folder.")


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object at `path`; raises StoreError when there is none."""
    value = reading.read_json(path, "a JSON file written by a run", "Remove it, and run the recipe again.")
    if not isinstance(value, dict):
        raise StoreError(
            f"{path} that holds a {type(value).__name__}", "a JSON object", "Remove it, and run the recipe again."
        )
    return value
