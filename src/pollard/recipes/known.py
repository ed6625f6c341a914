"""Points of a study that were made elsewhere or before, and stand for runs that are not made again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pollard import reading
from pollard.errors import InvalidInput
from pollard.reading import has
from pollard.recipes.folder import writable_folder, write_json
from pollard.recipes.recipe import Recipe
from pollard.recipes.study import Study

KNOWN = "known.json"
PARTS = {
    "run": str, "recipe": dict, "method": str, "density": float, "seed": int, "test_accuracy": float, "bytes": dict, "curve": list,
}  # fmt: skip
REPORT = "the points that `pollard report DIR --json FILE` writes"


def points_of(study: Study, file: Path) -> dict[str, dict[str, Any]]:
    """Those points of `file` that are of `study`, by run; raises InvalidInput where there are none."""
    planned = {run.recipe.digest for run in study.runs()}
    found = {point["run"]: point for point in _read(file) if point["run"] in planned}
    if not found:
        fix = "Give the file of the same study: recipes have to be equal in every field."
        raise InvalidInput(f"{file}, none of whose runs is in {study.title!r}", "points of this study", fix)
    return found


def bring(points: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Keep `points` in `out`, beside those that were brought before; raises StoreError where that cannot be written."""
    writable_folder(out)
    write_json(out / KNOWN, list({**known(out), **points}.values()))


def known(out: Path) -> dict[str, dict[str, Any]]:
    """The points brought to `out`, by run; raises InvalidInput where their file is damaged."""
    return {point["run"]: point for point in _read(out / KNOWN)} if (out / KNOWN).exists() else {}


def is_enough(point: Mapping[str, Any], *, aims: bool) -> bool:
    """Whether a point has all that a study asks for: both aims too, if asked, wherever something was pruned."""
    return not aims or point.get("aims") is not None or point["method"] == "dense"


def _read(file: Path) -> list[dict[str, Any]]:
    """The points in `file`; raises InvalidInput where they are something else, or a recipe is not the one it is named by."""
    points = reading.read_json(file, REPORT, "Give that file.")
    if not isinstance(points, list):
        raise InvalidInput(f"{file} that holds a {type(points).__name__}", REPORT, "Give that file.")
    for point in points:
        if not has(point, PARTS):
            raise InvalidInput(f"{file}, a point {point!r:.80}", REPORT, "Give a file that nobody edited.")
        if Recipe.from_dict(point["recipe"]).digest != point["run"]:
            fix = "Make the run again: the recipe was edited, or is of another version of pollard."
            raise InvalidInput(f"{file}, run {point['run']}", "the run that its recipe is named by", fix)
    return points
