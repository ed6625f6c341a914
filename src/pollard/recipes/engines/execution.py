"""One run of a study in a worker, and what became of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pollard.errors import PollardError, StoreError
from pollard.recipes.folder import FAILURE, RESULT, read_json, write_json
from pollard.recipes.pipeline import required
from pollard.recipes.recipe import Recipe
from pollard.recipes.result import RunResult


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run: finished, if there is no error."""

    run: str
    seconds: float
    error: str | None = None


def execute(recipe: Mapping[str, Any], out: str, threads: int, aims: bool = True, device: str = "cpu") -> Outcome:
    """Run `recipe` in `out`, or go on with it, and measure both aims if asked; a failure is written into its folder and returned, never raised."""
    from pollard.recipes.run import run  # in the worker only: the process that hands out runs need not load it

    value = Recipe.from_dict(recipe)
    started = time.perf_counter()
    try:
        _refuse_after(required(value), Path(out))
        run(value, out, device=device, progress=False, threads=threads, aims=aims, wait=True)
    except Exception as error:  # noqa: BLE001  whatever it is, the other runs go on, and it is reported
        told = str(error) if isinstance(error, PollardError) else f"{type(error).__name__}: {error}"
        fail(Path(out), value.digest, told, traceback.format_exc())
        return Outcome(value.digest, time.perf_counter() - started, told)
    return Outcome(value.digest, time.perf_counter() - started)


def _refuse_after(first: Sequence[Recipe], out: Path) -> None:
    """Raises PollardError where one of the runs that weights come from has failed: it would only fail again."""
    for recipe in first:
        if has_failed(out, recipe):
            told = failure(out, recipe.digest)
            raise PollardError(
                f"the failure of run {recipe.digest}, which weights come from: {told}",
                "that run",
                "Mend it, and --retry.",
            )


def fail(out: Path, run: str, error: str, trace: str = "") -> None:
    """Leave word of a failure in the folder of `run`, where that can be written."""
    with suppress(OSError, StoreError):
        (out / run).mkdir(parents=True, exist_ok=True)
        write_json(out / run / FAILURE, {"error": error, "traceback": trace.splitlines()[-40:], "time": time.time()})


def failure(out: Path, run: str) -> str:
    """What the failure of `run` in `out` said."""
    try:
        return str(read_json(out / run / FAILURE).get("error", "no word of why"))
    except StoreError as error:
        return str(error)


def is_finished(out: Path, recipe: Recipe, *, aims: bool = True) -> bool:
    """Whether there is nothing left to do for `recipe`, with or without both aims; a damaged result is something to tell of, when it is run."""
    folder = out / recipe.digest
    try:
        if not (folder / RESULT).exists():
            return False
        return RunResult.read(folder).is_complete or not aims
    except StoreError:
        return False


def has_failed(out: Path, recipe: Recipe) -> bool:
    """Whether `recipe` was run before and failed. A run that was killed has not: it goes on."""
    return (out / recipe.digest / FAILURE).exists()
