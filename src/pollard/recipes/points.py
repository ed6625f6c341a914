"""The results of a study as flat points, one a label and run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pollard.recipes.engines.execution import FAILURE
from pollard.recipes.folder import RESULT, read_json
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
    ledger = read_ledger(out)
    return [_point(out / run["run"], run["label"]) for run in ledger["runs"] if (out / run["run"] / RESULT).exists()]


def failures(out: Path) -> dict[str, str]:
    """The runs of the study in `out` that failed, with what they said."""
    runs = [run["run"] for run in read_ledger(out)["runs"]]
    return {run: str(read_json(out / run / FAILURE)["error"]) for run in runs if (out / run / FAILURE).exists()}


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
        "aims": None if result.aims is None else asdict(result.aims),
        "bytes": asdict(result.bytes),
        "curve": [line["test_accuracy"] for line in read_metrics(folder / METRICS)],
        "run": recipe.digest,
        "recipe": recipe.to_dict(),
    }
