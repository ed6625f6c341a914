"""The results of a study as flat points, one a label and run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pollard.errors import StoreError
from pollard.recipes.engines.execution import failure
from pollard.recipes.folder import FAILURE, RESULT
from pollard.recipes.known import known
from pollard.recipes.result import RunResult
from pollard.recipes.study import read_ledger
from pollard.training import read_metrics
from pollard.training.loop import METRICS
from pollard.training.metrics import column

COPIED = (
    "test_accuracy", "test_loss", "train_loss", "nnz", "weights", "densities", "seconds_per_step", "peak_rss_bytes",
    "validation_accuracy", "validation_loss", "explored_rate", "training_flops", "phases", "total_flops", "dead_neurons",
    "trainability", "epochs",
)  # fmt: skip


class Found(NamedTuple):
    """What there is of a study: its points, and what its failed or damaged runs said, by run."""

    points: list[dict[str, Any]]
    failures: dict[str, str]


def read_study(out: Path) -> Found:
    """The study in `out`, one point for each label and finished or known run, in the order of its ledger; StoreError without one.

    Keys of a point: label, series, method, density (asked), kept_density, sparsity, seed, run, recipe, bytes, aims, trainability,
    curve (the test accuracy after each epoch), and what the run's result has under the same name.
    """
    ledger = read_ledger(out)
    # Older points lack what was first told later.
    read = {run: {**dict.fromkeys(COPIED), **point} for run, point in known(out).items()}
    failed: dict[str, str] = {}
    # Those first that others take weights from; each once, under however many labels.
    for run in dict.fromkeys([*ledger.get("first", []), *(run["run"] for run in ledger["runs"])]):
        if (out / run / FAILURE).exists():
            failed[run] = failure(out, run)
        if (out / run / RESULT).exists():
            try:
                read[run] = _point(out / run)
            except StoreError as error:
                failed.setdefault(run, str(error))
    # What a known point was called elsewhere is not what this study calls it.
    named = [(_names(run), read[run["run"]]) for run in ledger["runs"] if run["run"] in read]
    return Found([names | point | names for names, point in named], failed)


def points(out: Path) -> list[dict[str, Any]]:
    """The points of `read_study`."""
    return read_study(out).points


def failures(out: Path) -> dict[str, str]:
    """The failures of `read_study`."""
    return read_study(out).failures


def _names(run: Mapping[str, str]) -> dict[str, str]:
    """What a run of a ledger is called; the first ledgers told only labels."""
    return {"label": run["label"], "series": run.get("series", run["label"])}


def _number(value: float | None) -> float | None:
    """`value`, or None for what JSON has no number for."""
    return None if value is None or not math.isfinite(value) else value


def _point(folder: Path) -> dict[str, Any]:
    result = RunResult.read(folder)
    recipe = result.recipe
    return {
        "method": recipe.method,
        "density": recipe.density,
        "kept_density": result.density,
        "sparsity": 1 - result.density,
        "seed": recipe.seed,
        **{name: getattr(result, name) for name in COPIED},
        "aims": None if result.aims is None else {name: _number(value) for name, value in asdict(result.aims).items()},
        "bytes": asdict(result.bytes),
        "curve": column(read_metrics(folder / METRICS), "test_accuracy", folder / METRICS),
        "run": recipe.digest,
        "recipe": recipe.to_dict(),
    }
