"""Encoder-only Mask Transformer: queries that pass through the last blocks of a plain ViT and become masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from vitdense.arguments import check
from vitdense.backbones.tokens import Tokens
from vitdense.backbones.vit import ViT
from vitdense.ops.padding import hold_edges, map_extents, region_sizes, whole_cells, zero_padding
from vitdense.registry import build
from vitdense.types import ClassLayer, QueryOutputs

GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly for every number of them


class EoMT(nn.Module):
    """EoMT (Kerssies et al. 2025, arXiv 2503.19108): `num_queries` learned queries join the tokens of `backbone`, a ViT
    or its recipe, before its last `num_blocks` blocks. No adapter, no pixel decoder, no Transformer decoder.

    Behind the final norm, a query has class logits (`num_classes` and a last one, no object) and, through three linear
    layers, a mask embedding, whose dot products with a map of the patches are its mask. That map is doubled in size
    `num_upscales` times (default: to a stride of 4, for patches of 14: 7).

    Masked attention (section 3.2): the queries predict before each of these blocks too, and in the block a query
    attends to the patches that its mask covers, the other queries and the prefix tokens. `set_masking` sets the share
    of the queries that is masked so in each block; `MaskAnnealingHook` lets it fall to 0 in the course of the training.
    Where it is 0, the block is one of a plain ViT. The shares are a buffer and part of the weights. Which queries are
    masked is random for every image in training, and in evaluation always the same, evenly spread.

    The output `name` is `QueryOutputs` with class and mask logits; in training `aux` has the predictions before each of
    the blocks. Names of parameters are those of the published weights: `q`, `class_head`, `mask_head`, `upscale`.

    Raises ConfigError where the number of classes is unknown, or the ViT has too few blocks or windows in those blocks.
    """

    class_layers = (ClassLayer('class_head', num_extra=1),)

    def __init__(
        self,
        backbone: nn.Module | dict,
        *,
        num_queries: int = 100,
        num_blocks: int = 4,
        num_upscales: int | None = None,
        name: str = 'sem',
        num_classes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f'num_queries is at least 1, got {num_queries}')
        self.names = (name,)
        self.backbone: ViT = build(backbone)
        _check(self.backbone, num_blocks, name, num_classes or {})
        self.divisor = self.patch_size = self.backbone.patch_size
        self.mean, self.std = tuple(self.backbone.mean), tuple(self.backbone.std)
        self.num_queries, self.num_blocks = num_queries, num_blocks
        channels = self.backbone.embed_dim
        if num_upscales is None:
            num_upscales = max(1, int(math.log2(self.patch_size)) - 2)
        self.q = nn.Embedding(num_queries, channels)
        self.class_head = nn.Linear(channels, num_classes[name] + 1)
        linears = [nn.Linear(channels, channels) for _ in range(3)]
        self.mask_head = nn.Sequential(linears[0], nn.GELU(), linears[1], nn.GELU(), linears[2])
        self.upscale = nn.ModuleList(UpscaleBlock(channels) for _ in range(num_upscales))
        self.register_buffer('attn_mask_probs', torch.ones(num_blocks))
        self._masked = (True,) * num_blocks  # where the buffer is above 0, kept on the CPU
        self.register_load_state_dict_post_hook(_read_masking)

    def forward(
        self, imgs: Tensor, valid: Tensor | None = None, training_inputs: Mapping[str, Any] | None = None
    ) -> dict[str, QueryOutputs]:
        """Return the outputs of a batch: `imgs` (B, 3, H, W) float32 normalised, H and W multiples of `divisor`.

        `valid` (B, H, W) bool is False on padding, where mask logits repeat the edge of the image. `training_inputs`
        are not used.
        """
        if valid is not None:
            valid = whole_cells(valid, self.divisor)
        first = self.backbone.depth - self.num_blocks
        tokens = self.backbone.run(self.backbone.embed(imgs, valid), 0, first)
        tokens = self.backbone.insert(tokens, self.q.weight.expand(imgs.shape[0], -1, -1))
        earlier = []
        for offset, masked in enumerate(self._masked):
            mask = None
            if masked or self.training:
                earlier.append(self._predict(tokens, imgs, valid))
            if masked:
                mask = self._attention(tokens, earlier[-1].mask_logits.detach(), self.attn_mask_probs[offset])
            tokens = self.backbone.run(tokens, first + offset, first + offset + 1, attn_mask=mask)
        outputs = self._predict(tokens, imgs, valid)
        return {self.names[0]: outputs._replace(aux=tuple(earlier)) if self.training else outputs}

    def set_masking(self, shares: Sequence[float]) -> None:
        """Set the share in [0, 1] of the queries whose attention is masked, for each of the last blocks.

        Raises ValueError for another number of blocks, and for what is no share.
        """
        if len(shares) != self.num_blocks or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f'{self.num_blocks} blocks need as many shares in [0, 1], got {tuple(shares)}')
        self.attn_mask_probs.copy_(torch.tensor(shares))
        self._masked = tuple(share > 0 for share in shares)

    def _predict(self, tokens: Tokens, imgs: Tensor, valid: Tensor | None) -> QueryOutputs:
        """Return the predictions of the queries from the current tokens."""
        tokens = self.backbone.norm(tokens)
        start = self.backbone.num_prefix_tokens
        queries = tokens.x[:, start : start + self.num_queries]  # (B, Q, C)
        maps, stride = self.backbone.fold(tokens), self.patch_size
        extents = None
        for block in self.upscale:
            stride = stride / 2
            extents = map_extents(valid, stride, (2 * maps.shape[-2], 2 * maps.shape[-1]))
            maps = block(maps, extents)
        mask_logits = torch.einsum('bqc,bchw->bqhw', self.mask_head(queries), maps)
        input_size = (imgs.shape[-2], imgs.shape[-1])
        return QueryOutputs(
            class_logits=self.class_head(queries),
            mask_logits=hold_edges(mask_logits, extents),
            sizes=region_sizes(valid, imgs, input_size),
            input_size=input_size,
        )

    def _attention(self, tokens: Tokens, mask_logits: Tensor, share: Tensor) -> Tensor:
        """Return the mask (B, 1, N, N), True = may attend; of the patches, a query attends to those in its mask."""
        inside = functional.interpolate(mask_logits, tokens.grid, mode='bilinear', align_corners=False) > 0
        free = self._noise(inside) > share  # (B, Q) or (Q,)
        batch, total = tokens.x.shape[:2]
        start, stop = self.backbone.num_prefix_tokens, tokens.num_special_tokens
        mask = torch.ones(batch, 1, total, total, dtype=torch.bool, device=inside.device)
        mask[:, 0, start:stop, stop:] = inside.flatten(2) | free[..., None]
        return mask

    def _noise(self, inside: Tensor) -> Tensor:
        if self.training:
            return torch.rand(inside.shape[:2], device=inside.device)
        return (torch.arange(self.num_queries, device=inside.device) + 0.5) * GOLDEN % 1


class UpscaleBlock(nn.Module):
    """Double a map (EoMT, section 3.1): transposed convolution, GELU, a depthwise convolution, and a layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        self.norm = LayerNorm2d(channels)

    def forward(self, x: Tensor, extents: Tensor | None = None) -> Tensor:
        """Return (B, C, 2h, 2w) of `x` (B, C, h, w); `extents` are those of the images in the result."""
        x = zero_padding(self.act(self.conv1(x)), extents)
        return self.norm(self.conv2(x))


def _read_masking(module: EoMT, keys: Any = None) -> None:
    """Set which blocks are masked from the loaded buffer."""
    module._masked = tuple(share > 0 for share in module.attn_mask_probs.tolist())


def _check(vit: ViT, num_blocks: int, name: str, num_classes: Mapping[str, int]) -> None:
    why = f'queries join the tokens before one of the {vit.depth} blocks of the ViT'
    fix = f'choose a number from 1 to {vit.depth}: 3 for ViT-S and B, 4 for L, 5 for g'
    check(0 < num_blocks <= vit.depth, 'EoMT.num_blocks', num_blocks, why, fix)
    windowed = set() if vit.windows is None else vit.windows.blocks(vit.depth)
    windowed = sorted(windowed & set(range(vit.depth - num_blocks, vit.depth)))
    why = f'queries pass through the blocks {windowed}, which attend within windows, to objects in the whole image'
    blocks = ', '.join(str(index - num_blocks) for index in range(num_blocks))
    fix = f'make the last {num_blocks} blocks global: global_blocks with {blocks} in it'
    check(not windowed, 'EoMT.backbone.windows', vit.windows, why, fix)
    why = f'the data set and the tasks name classes for {", ".join(num_classes) or "nothing"}: the number is unknown'
    fix = 'give the task the name of the network, and the model the classes of the data set'
    check(name in num_classes, 'EoMT.name', name, why, fix)
