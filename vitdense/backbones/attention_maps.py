"""Attention weights of selected tokens, recorded from one block of a ViT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vitdense.arguments import check
from vitdense.backbones.vit import Tokens, ViT


@torch.no_grad()
def attention_rows(vit: ViT, tokens: Tokens, block: int, rows: Sequence[int]) -> tuple[Tokens, Tensor]:
    """Run one block; return its tokens and the attention weights of the tokens `rows`, (B, heads, R, N) float32.

    Only these rows are computed, not the N x N matrix. Queries and keys are recorded after norms and rotations.
    Raises ConfigError where the block attends within windows or to prefix tokens of each window, or does not use
    scaled_dot_product_attention.
    """
    with _RecordAttention() as recorder:
        after = vit.run(tokens, block, block + 1)
    whole = bool(recorder.calls) and recorder.calls[0][0].shape[::2] == tokens.x.shape[:2]
    why = 'its attention is within windows, or to tokens of each, or not by scaled_dot_product_attention of torch'
    fix = 'choose another layer, one with global attention; and unset TIMM_FUSED_ATTN'
    check(whole, 'layer', block, why, fix)
    query, key, mask, scale = recorder.calls[0]
    scores = query[:, :, list(rows)].float() @ key.float().mT * scale  # (B, heads, R, N)
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], query.shape[-2], -1)[..., list(rows), :]
        scores = scores.masked_fill(~mask, float('-inf')) if mask.dtype == torch.bool else scores + mask
    return after, scores.softmax(-1)


class _RecordAttention(TorchFunctionMode):
    """Record queries, keys, mask and scale of every scaled_dot_product_attention call in the context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor | None, float]] = []

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            query, key = args[0], args[1]  # (B, heads, N, d)
            mask = args[3] if len(args) > 3 else kwargs.get('attn_mask')
            self.calls.append((query, key, mask, kwargs.get('scale') or query.shape[-1] ** -0.5))
        return function(*args, **kwargs)
