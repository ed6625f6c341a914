"""What to keep: pure decisions over scores, testable on a 3 x 4 tensor."""

from __future__ import annotations

from pollard.pruning.allocation import ALLOCATIONS
from pollard.pruning.at_init import prune_at_init
from pollard.pruning.criteria import CRITERIA, Criterion, needs
from pollard.pruning.masks import top_positions
from pollard.pruning.plan import Plan

__all__ = ["ALLOCATIONS", "CRITERIA", "Criterion", "Plan", "needs", "prune_at_init", "top_positions"]
