"""The blocks of DETR's transformer: attention, feed-forward and MLPs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values may differ (Vaswani et al. 2017, section 3.2.2).

    Its parameters are named and laid out as those of `nn.MultiheadAttention`.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'{dim} channels do not divide into {num_heads} attention heads')
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, Q, C) for `queries` (B, Q, C), `keys` and `values` (B, K, C).

        `mask`, bool, True = may attend, broadcasts to (B, heads, Q, K).
        """
        inputs = zip((queries, keys, values), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        query, key, value = (self._split(functional.linear(x, weight, bias)) for x, weight, bias in inputs)
        dropout = self.dropout if self.training else 0.0
        x = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (B, heads, Q, c) -> (B, Q, C)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, C) -> (B, heads, N, c)


class AddNorm(nn.Module):
    """`norm(x + dropout(update))`: the residual connection of a post-norm transformer."""

    def __init__(self, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        return self.norm(x + self.dropout(update))


class FeedForward(nn.Module):
    """Two linear layers with ReLU between, added to their input and normalised."""

    def __init__(self, dim: int, ffn_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.add = AddNorm(dim, dropout=dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.linear2(self.dropout(functional.relu(self.linear1(x)))))


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between."""

    def __init__(self, in_channels: int, ffn_dim: int, out_channels: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_channels, *[ffn_dim] * (num_layers - 1), out_channels]
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears[:-1]:
            x = functional.relu(linear(x))
        return self.linears[-1](x)
