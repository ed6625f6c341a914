"""Options that cannot be trained with are refused, with a way out."""

from __future__ import annotations

import pytest

from pollard.errors import InvalidInput
from pollard.training import TrainingOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"optimizer": "sdg"},
        {"schedule": "cosin"},
        {"precision": "bf16"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"momentum": 1.0},
        {"beta2": -0.1},
        {"weight_decay": -1e-4},
        {"weight_decay": float("nan")},
        {"decay_factor": 0.0},
        {"decay_every": -1},
        {"warmup": -1},
        {"seed": -1},
        {"nesterov": True, "momentum": 0.0},
        {"nesterov": True, "optimizer": "adam"},
    ],
)
def test_what_cannot_work_is_refused(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        TrainingOptions(**wrong)
