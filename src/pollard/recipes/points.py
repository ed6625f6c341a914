"""The results of a study as flat points, one a label and run."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pollard.errors import StoreError
from pollard.recipes.engines.execution import failure
from pollard.recipes.folder import FAILURE, RESULT
from pollard.recipes.result import RunResult
from pollard.recipes.study import read_ledger
from pollard.training import read_metrics
from pollard.training.loop import METRICS

COPIED = (
    "test_accuracy", "test_loss", "train_loss", "nnz", "weights", "densities", "seconds_per_step", "peak_rss_bytes",
    "explored_rate", "trainability", "epochs",
)  # fmt: skip


def points(out: Path) -> list[dict[str, Any]]:
    """One dict for each finished run of the study in `out`, in the order of its ledger; raises StoreError without one.

    Keys: label, method, density (asked), kept_density, sparsity, seed, run, recipe, bytes, aims, trainability, curve (the
    test accuracy after each epoch), and what the run's result has under the same name.
    """
    runs = [run for run in read_ledger(out)["runs"] if (out / run["run"] / RESULT).exists()]
    found = []
    for run in runs:
        with suppress(StoreError):  # a damaged one is among the failures
            found.append(_point(out / run["run"], run["label"]))
    return found


def failures(out: Path) -> dict[str, str]:
    """The runs of the study in `out` that failed, or whose results are damaged, with what they said; first those first."""
    ledger = read_ledger(out)
    told = {}
    for run in dict.fromkeys([*ledger.get("first", []), *(run["run"] for run in ledger["runs"])]):
        if (out / run / FAILURE).exists():
            told[run] = failure(out, run)
        elif (out / run / RESULT).exists():
            try:
                _point(out / run, "")
            except StoreError as error:
                told[run] = str(error)
    return told


def _number(value: float | None) -> float | None:
    """`value`, or None for what JSON has no number for."""
    return None if value is None or not math.isfinite(value) else value


def _point(folder: Path, label: str) -> dict[str, Any]:
    result = RunResult.read(folder)
    recipe = result.recipe
    return {
        "label": label,
        "method": recipe.method,
        "density": recipe.density,
        "kept_density": result.density,
        "sparsity": 1 - result.density,
        "seed": recipe.seed,
        **{name: getattr(result, name) for name in COPIED},
        "aims": None if result.aims is None else {name: _number(value) for name, value in asdict(result.aims).items()},
        "bytes": asdict(result.bytes),
        "curve": [line["test_accuracy"] for line in read_metrics(folder / METRICS)],
        "run": recipe.digest,
        "recipe": recipe.to_dict(),
    }
