"""The Transformer block of decoders."""

from __future__ import annotations

from timm.layers import Attention, Mlp
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each behind a norm and beside a shortcut (ViT, https://arxiv.org/abs/2010.11929).

    Parameters have the names of timm's blocks.
    """

    def __init__(self, channels: int, *, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))  # (B, N, C)
        return x + self.mlp(self.norm2(x))
