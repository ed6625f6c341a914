"""ConvNeXt: convolutional blocks shaped as those of transformers are.

Source: Liu et al., A ConvNet for the 2020s, CVPR 2022. The sizes are those that are known as atto. For images of 32 x 32 the first
layer takes patches of 2 x 2 instead of 4 x 4, and no block is skipped in training. Convolutions of single channels stay dense when
the network is pruned.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from pollard.networks.architecture import Ends, architecture, scaled

CHANNELS, DEPTHS = (40, 80, 160, 320), (2, 2, 6, 2)
LAYER_SCALE = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of images `(samples, channels, height, width)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`."""
        y: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """``x + scale * fc2(gelu(fc1(norm(conv(x)))))``: a 7 x 7 convolution of each channel, then two layers at each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(self.fc2.weight.new_full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`."""
        y = self.fc2(functional.gelu(self.fc1(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        added: Tensor = (self.scale * y).permute(0, 3, 1, 2)
        return x + added


class ConvNeXt(nn.Module):
    """Patches, four stages of blocks, each at half the size of the one before, a mean."""

    def __init__(self, ends: Ends, width: float = 1.0, patch: int = 2) -> None:
        super().__init__()
        inputs = ends.channels
        stages: list[nn.Module] = []
        for channels, depth in zip((scaled(each, width) for each in CHANNELS), DEPTHS, strict=True):
            if stages:
                stages += [ChannelNorm(inputs, eps=1e-6), nn.Conv2d(inputs, channels, 2, 2)]
            else:
                stages += [nn.Conv2d(inputs, channels, patch, patch), ChannelNorm(channels, eps=1e-6)]
            stages += [ConvNeXtBlock(channels) for _ in range(depth)]
            inputs = channels
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(inputs, eps=1e-6)
        self.head = nn.Linear(inputs, ends.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(samples, classes)` of images `(samples, channels, height, width)`."""
        logits: Tensor = self.head(self.norm(self.stages(x).mean((2, 3))))
        return logits


@architecture("convnext-atto")
def convnext_atto(ends: Ends, width: float) -> ConvNeXt:
    """3.4 million parameters."""
    return ConvNeXt(ends, width)
