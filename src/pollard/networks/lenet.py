"""LeNet-5 as Caffe has it: two convolutions, two linear layers.

Source: LeCun et al., Gradient-based learning applied to document recognition, 1998; the sizes are those of Caffe's example of MNIST,
which papers on pruning call LeNet-5-Caffe. As there, only the first linear layer has a ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pollard.networks.architecture import MNIST, Ends, architecture, scaled


class LeNet5Caffe(nn.Module):
    """5 x 5 convolutions to 20 and 50 channels, each halved by a maximum, then 500 hidden units: 430,500 weights on MNIST."""

    def __init__(self, ends: Ends, width: float = 1.0) -> None:
        super().__init__()
        first, second, hidden = (scaled(size, width) for size in (20, 50, 500))
        self.conv1 = nn.Conv2d(ends.channels, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.pool = nn.MaxPool2d(2)
        # What two valid convolutions and two halvings leave of the image.
        height, across = (((size - 4) // 2 - 4) // 2 for size in ends.input_shape[1:])
        self.fc1 = nn.Linear(max(0, second * height * across), hidden)
        self.fc2 = nn.Linear(hidden, ends.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(samples, classes)` of images `(samples, channels, height, width)`."""
        x = self.pool(self.conv2(self.pool(self.conv1(x))))
        logits: Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
        return logits


@architecture("lenet-5-caffe", MNIST)
def lenet_5_caffe(ends: Ends, width: float) -> LeNet5Caffe:
    """The network of SNIP's and GraSP's tables on MNIST."""
    return LeNet5Caffe(ends, width)
