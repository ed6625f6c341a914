"""Which papers a run stands on: of its criterion, its allocation, its repair and its pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pollard.pruning.criteria import CRITERIA
from pollard.training.methods import METHODS

ALLOCATIONS = {"er": "mocanu2018scalable", "erk": "evci2020rigging", "smart-ratio": "su2020sanity", "owl": "yin2024owl"}
REPAIRS = {"isometry": "lee2020signal", "orthogonal": "nowak2024sparser", "refit": "frantar2023sparsegpt"}


def sources(recipe: Mapping[str, Any]) -> list[str]:
    """The keys in `citations()` of what a recipe's fields ask for, the criterion's first.

    >>> sources({"method": "snip", "allocation": "global", "repair": "isometry"})
    ['lee2019snip', 'lee2020signal']
    >>> sources({"method": "magnitude", "allocation": "erk", "score_at": 10.0, "weights_at": 0.0, "cycles": 4})
    ['han2015learning', 'evci2020rigging', 'frankle2019lottery']
    >>> sources({"method": "set", "density": 0.1, "allocation": "uniform"})
    ['mocanu2018scalable']
    """
    method = recipe.get("method", "dense")
    if method == "dense":
        return []
    moving = METHODS[method](recipe.get("density", 0.5), 1000).cite if method in METHODS else ""
    rule = (recipe.get("criterion") or "random") if method in METHODS else method
    found = [moving, CRITERIA[rule].cite, ALLOCATIONS.get(recipe.get("allocation", ""), "")]
    found += [REPAIRS.get(recipe.get("repair", ""), ""), _pipeline(recipe)]
    if recipe.get("ablation"):
        found.append("frankle2021pruning")
    return [key for key in found if key]


def _pipeline(recipe: Mapping[str, Any]) -> str:
    scored, kept = recipe.get("score_at", 0.0), recipe.get("weights_at", -1.0)
    if scored == 0.0:
        return ""
    if kept >= 0.0 and kept != scored:
        return "frankle2019lottery" if kept == 0.0 else "frankle2020linear"
    return "renda2020comparing" if recipe.get("schedule_at", 0.0) == 0.0 else ""
