"""Networks of the studies on CIFAR-10; `model = "studies.networks:NAME"` names them, from the folder above."""

from __future__ import annotations

from torch import nn

from pollard.networks import Ends, build

# Channels and stride of each convolution: sixteen divides all of them, so that every pattern is one for every layer but the last.
STRIDED = ((16, 2), (32, 2), (64, 2), (128, 1), (128, 1))


def strided(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Five 3 x 3 convolutions that halve images by their strides, batch norm, a mean and one linear layer: 245,936 weights for 3 x 32 x 32."""
    layers: list[nn.Module] = []
    inputs = input_shape[0]
    for outputs, stride in STRIDED:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def resnet_20(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-20 of half the width, on images of half the size: a sixteenth of its operations, 67,352 weights."""
    return _on_half(input_shape, classes, "resnet-20-x0.5")


def vgg_16(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """VGG-16 of a quarter of the width, on images of half the size: a sixty-fourth of its operations, 921,008 weights."""
    return _on_half(input_shape, classes, "vgg-16-x0.25")


def _on_half(input_shape: tuple[int, ...], classes: int, name: str) -> nn.Module:
    """The network called `name` behind a mean over each 2 x 2 pixels."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.AvgPool2d(2), build(name, Ends(input_shape=(channels, height // 2, width // 2), classes=classes))
    )
