"""nn.MultiheadAttention: what projects queries, keys and values, and what comes after, are linear layers, ranked apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pollard.composites.composite import Composite, biased, composite
from pollard.errors import InvalidInput


@composite(nn.MultiheadAttention)
class ComposedMultiheadAttention(Composite):
    """``softmax(Q K^T / sqrt(d)) V`` over heads: `nn.MultiheadAttention` of four linear layers."""

    # torch's encoder layers ask this before they read the stacked weight past the module.
    _qkv_same_embed_dim = False

    @classmethod
    def parts(cls, whole: nn.Module) -> dict[str, str]:
        """`q_proj`, `k_proj`, `v_proj` and `out_proj`, also where the first three are stacked."""
        three = ("q_proj", "k_proj", "v_proj")
        stacked = getattr(whole, "in_proj_weight", None) is not None
        return {name: "in_proj_weight" if stacked else f"{name}_weight" for name in three} | {
            "out_proj": "out_proj.weight"
        }

    def forward(  # noqa: PLR0917 - torch's own order
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the module it was made of: outputs, and the weights of attention if they are needed."""
        if is_causal and attn_mask is None:
            raise InvalidInput(
                "is_causal=True without attn_mask",
                "the mask that it hints at",
                "Pass attn_mask= as well, as torch wants.",
            )
        alone, along = query.dim() == 2, 0 if self.batch_first else 1
        first, *others = (part.unsqueeze(0) if alone else part.transpose(0, along) for part in (query, key, value))
        q, k, v = self._heads(first, *others)
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        chance = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            found = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(found, chance) if chance else found
            made = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            made = functional.scaled_dot_product_attention(q, k, v, mask, chance)
        outputs = self.out_proj(made.transpose(1, 2).flatten(2))
        if alone:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs.transpose(0, along), weights

    def _heads(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(batch, heads, steps, features)`, with what is added to keys and values."""
        bias = self._parameters.get("in_proj_bias")
        biases = [None] * 3 if bias is None else bias.chunk(3)
        made = []
        for x, name, own in zip(given, ("q_proj", "k_proj", "v_proj"), biases, strict=True):
            product = biased(getattr(self, name)(x), own)
            added = self._parameters.get(f"bias_{name[0]}") if name != "q_proj" else None
            if added is not None:
                product = torch.cat([product, added.expand(len(product), 1, -1)], 1)
            heads = product.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            if self.add_zero_attn and name != "q_proj":
                heads = functional.pad(heads, (0, 0, 0, 1))
            made.append(heads)
        return made[0], made[1], made[2]

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """What is added to the scores, of a shape that spreads over `(batch, heads, steps, keys)`."""
        parts = []
        if attention is not None:
            # One mask for all, or one for each head of each sample.
            own = attention if attention.dim() == 2 else attention.unflatten(0, (-1, self.num_heads))
            parts.append(_added(own, q, k))
        if padding is not None:
            own = padding if padding.dim() == 2 else padding.unsqueeze(0)
            parts.append(_added(own, q, k)[:, None, None])
        return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """`mask` as numbers, True as minus infinity, with zeros for the keys that were added behind those it knows."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf)
    return functional.pad(mask.to(q.dtype), (0, k.shape[-2] - mask.shape[-1]))


__all__ = ["ComposedMultiheadAttention"]
