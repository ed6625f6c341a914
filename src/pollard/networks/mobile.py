"""MobileNet: each 3 x 3 convolution split into one that looks at each channel alone, and a 1 x 1 that mixes channels.

Source: Howard et al., MobileNets: efficient convolutional neural networks for mobile vision applications, 2017. For images of 32 x 32
the stem and the second block keep their size, as three halvings are enough. Convolutions of single channels stay dense when the
network is pruned: they hold one weight in a hundred.
"""

from __future__ import annotations

from torch import Tensor, nn

from pollard.networks.architecture import Ends, architecture, scaled

# Channels and stride of each block.
BLOCKS = ((64, 1), (128, 1), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution of each channel, then one of 1 x 1, norm and ReLU behind both."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class MobileNetV1(nn.Module):
    """A 3 x 3 convolution to 32 channels, 13 separable ones, a mean."""

    def __init__(self, ends: Ends, width: float = 1.0) -> None:
        super().__init__()
        inputs = scaled(32, width)
        self.stem = nn.Sequential(
            nn.Conv2d(ends.channels, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()
        )
        blocks = []
        for channels, stride in BLOCKS:
            blocks.append(separable(inputs, scaled(channels, width), stride))
            inputs = scaled(channels, width)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, ends.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(samples, classes)` of images `(samples, channels, height, width)`."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


@architecture("mobilenet-v1")
def mobilenet_v1(ends: Ends, width: float) -> MobileNetV1:
    """3.2 million parameters; its paper's small ones are mobilenet-v1-x0.5 and mobilenet-v1-x0.25."""
    return MobileNetV1(ends, width)
