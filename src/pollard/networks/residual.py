"""Residual networks for images of 32 x 32.

Source: He, Zhang, Ren, Sun, Deep residual learning for image recognition, CVPR 2016. ResNet-20, 32 and 56 are those of its section
4.2, with its shortcuts A, which have no parameters. ResNet-18 is that of its table 1, with shortcuts B and with the stem that
papers on 32 x 32 images give it: one 3 x 3 convolution, no pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pollard.networks.architecture import Ends, architecture, scaled


class Subsampled(nn.Module):
    """Shortcut A: every `stride`-th pixel, and channels of zeros behind those that there are."""

    def __init__(self, stride: int, added: int) -> None:
        super().__init__()
        self.stride, self.added = stride, added

    def forward(self, x: Tensor) -> Tensor:
        """`(samples, channels + added, height / stride, width / stride)`."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))


def projected(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut B: a 1 x 1 convolution and its norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, the first with `stride`, added to their input by a shortcut of kind A or B."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = (
                projected(inputs, outputs, stride) if projects else Subsampled(stride, max(0, outputs - inputs))
            )

    def forward(self, x: Tensor) -> Tensor:
        """`(samples, outputs, height / stride, width / stride)`."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A 3 x 3 convolution, stages of `depth` blocks of so many `channels`, each at half the size of the one before, a mean."""

    def __init__(self, channels: Sequence[int], depth: int, ends: Ends, *, projects: bool) -> None:
        super().__init__()
        inputs = channels[0]
        self.conv1 = nn.Conv2d(ends.channels, inputs, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        blocks = []
        for stage, outputs in enumerate(channels):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(BasicBlock(inputs, outputs, stride, projects=projects))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, ends.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(samples, classes)` of images `(samples, channels, height, width)`."""
        x = torch.relu(self.norm1(self.conv1(x)))
        logits: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits


def _small(depth: int, ends: Ends, width: float) -> ResNet:
    return ResNet([scaled(channels, width) for channels in (16, 32, 64)], depth, ends, projects=False)


@architecture("resnet-20")
def resnet_20(ends: Ends, width: float) -> ResNet:
    """0.27 million parameters."""
    return _small(3, ends, width)


@architecture("resnet-32")
def resnet_32(ends: Ends, width: float) -> ResNet:
    """0.46 million parameters."""
    return _small(5, ends, width)


@architecture("resnet-56")
def resnet_56(ends: Ends, width: float) -> ResNet:
    """0.85 million parameters."""
    return _small(9, ends, width)


@architecture("resnet-18")
def resnet_18(ends: Ends, width: float) -> ResNet:
    """11.2 million parameters."""
    return ResNet([scaled(channels, width) for channels in (64, 128, 256, 512)], 2, ends, projects=True)
