"""Small networks and data that several tests prune."""

from __future__ import annotations

import torch
from torch import nn

from pollard.networks import Ends
from pollard.networks.residual import ResNet

BATCH = (torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4)


def lenet(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))


def noisy() -> nn.Sequential:
    """With everything that scoring could disturb."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 4))


def convolutions() -> nn.Sequential:
    """Two of them with a norm between, for images `(3, 6, 6)`."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5),
    )  # fmt: skip


def residual(input_shape: tuple[int, ...], classes: int) -> ResNet:
    """A ResNet of one block a stage, a quarter as wide as published."""
    return ResNet([4, 8, 16], 1, Ends(input_shape, classes), projects=False)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def same(one, other) -> bool:
    return all(one[name].same_as(other[name]) for name in one) and list(one) == list(other)
