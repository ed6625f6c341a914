"""A vision transformer of the smallest usual size, over patches of 4 x 4.

Source: Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021; the size is that of Touvron et al., Training data-efficient image
transformers, ICML 2021, DeiT-Ti. For images of 32 x 32 patches have 4 x 4 pixels instead of 16 x 16; there is no dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pollard.networks.architecture import Ends, architecture, scaled

POSITION_STD = 0.02


class SelfAttention(nn.Module):
    """Each token a mean of all tokens' values, weighted by how its query meets their keys, in several heads."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`, `(samples, tokens, size)`."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y: Tensor = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + fc2(gelu(fc1(norm(x))))`` of that."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=1e-6)
        self.attention = SelfAttention(size, heads)
        self.norm2 = nn.LayerNorm(size, eps=1e-6)
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of `x`, `(samples, tokens, size)`."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return y


class VisionTransformer(nn.Module):
    """Patches as tokens, one more for the class, learned positions, `depth` blocks; the class's token is read."""

    def __init__(self, size: int, heads: int, depth: int, ends: Ends, patch: int = 4) -> None:
        super().__init__()
        tokens = (ends.input_shape[1] // patch) * (ends.input_shape[2] // patch)
        self.patches = nn.Conv2d(ends.channels, size, patch, patch)
        self.token = nn.Parameter(self.patches.weight.new_zeros(1, 1, size))
        self.positions = nn.Parameter(self.patches.weight.new_zeros(1, 1 + tokens, size))
        for each in (self.token, self.positions):
            nn.init.trunc_normal_(each, std=POSITION_STD)
        self.blocks = nn.Sequential(*(TransformerBlock(size, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.head = nn.Linear(size, ends.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(samples, classes)` of images `(samples, channels, height, width)`."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x)[:, 0]))
        return logits


@architecture("vit-tiny")
def vit_tiny(ends: Ends, width: float) -> VisionTransformer:
    """12 blocks of 3 heads of 64 numbers, 5.4 million parameters; its width is that of a head."""
    return VisionTransformer(3 * scaled(64, width), 3, 12, ends)
