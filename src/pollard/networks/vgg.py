"""VGG for images of 32 x 32, as papers on pruning have it: batch norm behind each convolution, and one linear layer.

Source: Simonyan & Zisserman, Very deep convolutional networks for large-scale image recognition, ICLR 2015, configurations A, D
and E. Four of its five halvings by a maximum are kept; the mean over what is left takes the place of the fifth and of the two
hidden linear layers. Convolutions have no bias, as batch norm would take it away again.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pollard.networks.architecture import Ends, architecture, scaled

CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Stages of so many 3 x 3 convolutions as `depths` say, with half the height and width from one to the next."""

    def __init__(self, depths: Sequence[int], ends: Ends, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = ends.channels
        for stage, (depth, channels) in enumerate(zip(depths, CHANNELS, strict=True)):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(depth):
                outputs = scaled(channels, width)
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, ends.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(samples, classes)` of images `(samples, channels, height, width)`."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


@architecture("vgg-11")
def vgg_11(ends: Ends, width: float) -> VGG:
    """8 convolutions and the head, 9.2 million parameters."""
    return VGG((1, 1, 2, 2, 2), ends, width)


@architecture("vgg-16")
def vgg_16(ends: Ends, width: float) -> VGG:
    """13 convolutions and the head, 14.7 million parameters."""
    return VGG((2, 2, 3, 3, 3), ends, width)


@architecture("vgg-19")
def vgg_19(ends: Ends, width: float) -> VGG:
    """16 convolutions and the head, 20.0 million parameters."""
    return VGG((2, 2, 4, 4, 4), ends, width)
