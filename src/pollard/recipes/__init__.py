"""An experiment as a value, and its run."""

from __future__ import annotations

from pollard.recipes.pipeline import required
from pollard.recipes.recipe import Recipe
from pollard.recipes.result import RunResult
from pollard.recipes.run import run

__all__ = ["Recipe", "RunResult", "required", "run"]
