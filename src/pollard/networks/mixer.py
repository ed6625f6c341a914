"""An MLP-Mixer: linear layers over patches, and linear layers over channels, in turns.

Source: Tolstikhin et al., MLP-Mixer: an all-MLP architecture for vision, NeurIPS 2021, size S. For images of 32 x 32 patches have 4 x 4
pixels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from pollard.networks.architecture import Ends, architecture, scaled

DEPTH, SIZE, OVER_PATCHES, OVER_CHANNELS = 8, 512, 256, 2048


class TwoLayers(nn.Module):
    """``fc2(gelu(fc1(x)))``."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`."""
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y


class MixerBlock(nn.Module):
    """Two layers that mix the patches of each channel, then two that mix the channels of each patch, each added to its input."""

    def __init__(self, patches: int, size: int, over_patches: int, over_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=1e-6)
        self.patches = TwoLayers(patches, over_patches)
        self.norm2 = nn.LayerNorm(size, eps=1e-6)
        self.channels = TwoLayers(size, over_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`, `(samples, patches, size)`."""
        x = x + self.patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.channels(self.norm2(x))
        return y


class Mixer(nn.Module):
    """Patches, blocks that mix them, a mean."""

    def __init__(self, ends: Ends, width: float = 1.0, patch: int = 4) -> None:
        super().__init__()
        size, over_patches, over_channels = (scaled(each, width) for each in (SIZE, OVER_PATCHES, OVER_CHANNELS))
        patches = (ends.input_shape[1] // patch) * (ends.input_shape[2] // patch)
        self.stem = nn.Conv2d(ends.channels, size, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock(patches, size, over_patches, over_channels) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.head = nn.Linear(size, ends.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(samples, classes)` of images `(samples, channels, height, width)`."""
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


@architecture("mixer-small")
def mixer_small(ends: Ends, width: float) -> Mixer:
    """8 blocks of 512 channels, 17.1 million parameters."""
    return Mixer(ends, width)
