"""Where the runs of a study are executed: on this machine's cores, or on a Ray cluster."""

from __future__ import annotations

from pollard.recipes.engines.engine import ENGINES, Engine, run_study, unfinished
from pollard.recipes.engines.execution import Outcome

__all__ = ["ENGINES", "Engine", "Outcome", "run_study", "unfinished"]
