"""Training: one loop, torch's optimizers, schedules as functions, checkpoints that resume bit for bit."""

from __future__ import annotations

from pollard.training.checkpoint import Checkpoint
from pollard.training.evaluation import Evaluation, Examples, evaluate
from pollard.training.loop import Outputs, Trained, TrainingDiverged, train
from pollard.training.metrics import MetricsLog, read_metrics
from pollard.training.observers import Observer, ProgressBar, TensorBoard
from pollard.training.optimizers import make_optimizer
from pollard.training.options import TrainingOptions
from pollard.training.randomness import generator
from pollard.training.rounding import StochasticRounding

__all__ = [
    "Checkpoint",
    "Evaluation",
    "Examples",
    "MetricsLog",
    "Observer",
    "Outputs",
    "ProgressBar",
    "StochasticRounding",
    "TensorBoard",
    "Trained",
    "TrainingDiverged",
    "TrainingOptions",
    "evaluate",
    "generator",
    "make_optimizer",
    "read_metrics",
    "train",
]
