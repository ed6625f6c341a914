"""Wide residual networks: norm and ReLU before each convolution, few blocks, many channels.

Source: Zagoruyko & Komodakis, Wide residual networks, BMVC 2016, without dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pollard.networks.architecture import Ends, architecture, scaled


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each behind norm and ReLU, added to their input; a 1 x 1 convolution where the widths differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        widens = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        """`(samples, outputs, height / stride, width / stride)`."""
        before = torch.relu(self.norm1(x))
        y: Tensor = self.conv2(torch.relu(self.norm2(self.conv1(before))))
        # Where it changes width, the shortcut begins behind norm and ReLU, as in the authors' code.
        return y + (x if self.shortcut is None else self.shortcut(before))


class WideResNet(nn.Module):
    """Three stages of `(depth - 4) / 6` blocks, of 16, 32 and 64 channels times `factor`."""

    def __init__(self, depth: int, factor: int, ends: Ends, width: float = 1.0) -> None:
        super().__init__()
        inputs = scaled(16, width)
        self.conv1 = nn.Conv2d(ends.channels, inputs, 3, 1, 1, bias=False)
        blocks = []
        for stage in range(3):
            outputs = scaled(16 * 2**stage * factor, width)
            for number in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, outputs, 2 if stage and not number else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, ends.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(samples, classes)` of images `(samples, channels, height, width)`."""
        x = torch.relu(self.norm(self.blocks(self.conv1(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@architecture("wrn-16-8")
def wrn_16_8(ends: Ends, width: float) -> WideResNet:
    """11.0 million parameters."""
    return WideResNet(16, 8, ends, width)


@architecture("wrn-22-2")
def wrn_22_2(ends: Ends, width: float) -> WideResNet:
    """1.1 million parameters."""
    return WideResNet(22, 2, ends, width)


@architecture("wrn-28-2")
def wrn_28_2(ends: Ends, width: float) -> WideResNet:
    """1.5 million parameters."""
    return WideResNet(28, 2, ends, width)
