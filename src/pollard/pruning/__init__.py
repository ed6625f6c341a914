"""What to keep: pure decisions over scores, testable on a 3 x 4 tensor."""

from __future__ import annotations

from pollard.pruning.ablation import cross, shuffle
from pollard.pruning.aims import Aims, measure_aims, trainability
from pollard.pruning.alignment import Alignment, align_, grouped_rows
from pollard.pruning.allocation import ALLOCATIONS
from pollard.pruning.criteria import CRITERIA, Criterion, criterion
from pollard.pruning.decision import prune, prune_at_init
from pollard.pruning.isometry import restore_isometry
from pollard.pruning.masks import top_mask, top_positions
from pollard.pruning.measurements import MEASUREMENTS, measurement
from pollard.pruning.network import Network
from pollard.pruning.orthogonal import exact_orthogonal, sparse_orthogonal
from pollard.pruning.plan import Plan
from pollard.pruning.refit import refit
from pollard.pruning.scoring import Rounds, Scoring
from pollard.pruning.streaming import Forecast

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "MEASUREMENTS",
    "Aims",
    "Alignment",
    "Criterion",
    "Forecast",
    "Network",
    "Plan",
    "Rounds",
    "Scoring",
    "align_",
    "criterion",
    "cross",
    "exact_orthogonal",
    "grouped_rows",
    "measure_aims",
    "measurement",
    "prune",
    "prune_at_init",
    "refit",
    "restore_isometry",
    "shuffle",
    "sparse_orthogonal",
    "top_mask",
    "top_positions",
    "trainability",
]
