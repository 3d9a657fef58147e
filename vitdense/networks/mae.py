"""Masked autoencoding: mask most patches of an image, and reconstruct them from the visible ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitdense.arguments import check
from vitdense.backbones.vit import ViT
from vitdense.errors import DataError
from vitdense.registry import build
from vitdense.types import ReconstructionOutputs


class MaskedAutoencoder(nn.Module):
    """MAE (https://arxiv.org/abs/2111.06377): any ViT as the encoder, a small Transformer as the decoder.

    The inputs of the encoder are its prefix tokens and `1 - mask_ratio` of the patches. Those of the decoder are the
    outputs of the encoder, a mask token for every masked patch, and sine-cosine positions; it predicts every patch.
    With `norm_pix` the target patches have mean 0 and variance 1 (section 3, "reconstruction target").

    `backbone` is the encoder, a part or a recipe. With `fresh` it begins as in the paper: Xavier weights, and
    sine-cosine positions that are never learned; `fresh=False` takes it as it comes, to train a pretrained one further.

    Which patches are masked is random in training, drawn from torch's generator, so it depends on the seed and the
    step of a run alone; in evaluation one fixed choice holds for all images of one size. A task may give its own
    noise as `training_inputs[name]`.

    Raises ConfigError for ratios without visible or masked patches, for a `fresh` encoder with weights, and for
    a frozen one.
    """

    def __init__(
        self,
        backbone: nn.Module | dict,
        *,
        mask_ratio: float = 0.75,
        norm_pix: bool = True,
        decoder_channels: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        fresh: bool = True,
        name: str = 'mae',
        num_classes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        _check(backbone, mask_ratio, fresh)
        if decoder_channels % decoder_heads:
            raise ValueError(f'decoder_channels={decoder_channels} do not divide into decoder_heads={decoder_heads}')
        self.names = (name,)
        self.mask_ratio, self.norm_pix = mask_ratio, norm_pix
        self.backbone: ViT = build(backbone)
        why = 'the decoder would be trained alone, and the encoder is what pretraining is for'
        check(not self.backbone.frozen, 'MaskedAutoencoder.backbone.frozen', True, why, 'leave frozen out')
        self.divisor = self.patch_size = self.backbone.patch_size
        self.mean, self.std = tuple(self.backbone.mean), tuple(self.backbone.std)
        self.decoder_embed = nn.Linear(self.backbone.embed_dim, decoder_channels)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_channels))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_channels, decoder_heads, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_channels, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_channels, self.patch_size**2 * 3)
        table = sincos_table(self.backbone.grid, decoder_channels)
        self.register_buffer('decoder_positions', table, persistent=False)  # (h * w, decoder_channels)
        self.register_buffer('pixel_mean', torch.tensor(self.mean), persistent=False)  # (3,), as is pixel_std
        self.register_buffer('pixel_std', torch.tensor(self.std), persistent=False)
        self._begin(fresh)

    def forward(
        self, imgs: Tensor, valid: Tensor | None = None, training_inputs: Mapping[str, Any] | None = None
    ) -> dict[str, ReconstructionOutputs]:
        """Mask patches of `imgs` (B, 3, H, W), float32 normalised, and reconstruct them.

        `training_inputs[name]` (B, L) is the noise by which patches are masked: those with the least noise are visible.
        Raises DataError for a batch with padding: images of one batch have one size.
        """
        if valid is not None:
            raise DataError(
                'a batch with padding cannot be masked',
                where='MaskedAutoencoder.forward(valid)',
                why='the encoder takes equally many patches of every image, so images of one batch have one size',
                fix='let the transforms end in one size, such as dict(type=ResizeTo, size=224), or use batch_size=1',
            )
        grid = (imgs.shape[-2] // self.patch_size, imgs.shape[-1] // self.patch_size)
        noise = (training_inputs or {}).get(self.names[0])
        if noise is None:
            noise = self._noise(len(imgs), grid[0] * grid[1], imgs.device)
        order = noise.argsort(dim=1)  # (B, L) patches, the visible ones first
        rank = order.argsort(dim=1)  # (B, L) the position of each patch in that order
        visible = order[:, : self.num_visible(order.shape[1])]  # (B, K)
        patches = self.decode(self.encode(imgs, visible), rank, grid)
        target, scale, shift = self.target(imgs)
        mask = rank >= visible.shape[1]
        return {self.names[0]: ReconstructionOutputs(patches, target, mask, scale, shift, grid)}

    def num_visible(self, num_patches: int) -> int:
        """Return how many of `num_patches` are visible to the encoder, at least one."""
        return max(1, int(num_patches * (1 - self.mask_ratio)))

    def encode(self, imgs: Tensor, visible: Tensor) -> Tensor:
        """Return the normed tokens (B, P + K, C): the P prefix tokens and then the patches `visible` (B, K)."""
        tokens = self.backbone.keep(self.backbone.embed(imgs), visible)
        return self.backbone.norm(self.backbone.run(tokens)).x

    def decode(self, x: Tensor, rank: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return all patches (B, L, p * p * 3) as predicted from the encoder's tokens `x` (B, P + K, C).

        `rank` (B, L) says which row of the K patches belongs to each position; those from K on are masked.
        """
        x = self.decoder_embed(x)  # (B, P + K, D)
        prefix, patches = x.split([self.backbone.num_prefix_tokens, x.shape[1] - self.backbone.num_prefix_tokens], 1)
        num_masked = rank.shape[1] - patches.shape[1]
        masked = self.mask_token.to(x.dtype).expand(len(x), num_masked, -1)
        patches = torch.take_along_dim(torch.cat([patches, masked], dim=1), rank[..., None], dim=1)  # (B, L, D)
        x = torch.cat([prefix, patches + self._positions(grid)], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, prefix.shape[1] :]))

    def target(self, imgs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the target patches (B, L, p * p * 3), and `scale` and `shift` of `ReconstructionOutputs`."""
        mean, std = self.pixel_mean, self.pixel_std
        patches = patchify(imgs.float(), self.patch_size)
        if not self.norm_pix:
            return patches, std.expand(*patches.shape[:2], 3), mean.expand(*patches.shape[:2], 3)
        variance, middle = torch.var_mean(patches, dim=-1, keepdim=True)  # (B, L, 1)
        spread = (variance + 1e-6).sqrt()
        return (patches - middle) / spread, spread * std, middle * std + mean

    def encoder_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the encoder's part of a state dict of this network, under the names that timm gives it."""
        prefix = 'backbone.model.'
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    def _noise(self, batch: int, num_patches: int, device: torch.device) -> Tensor:
        """Return (B, L) in [0, 1); in evaluation the same for every image, at any time and in any batch."""
        if self.training:
            return torch.rand(batch, num_patches, device=device)
        fixed = torch.rand(num_patches, generator=torch.Generator().manual_seed(0))
        return fixed.to(device).expand(batch, -1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the decoder's positions (1, L, D), those of other grids resampled as the encoder's are."""
        table, usual = self.decoder_positions[None], self.backbone.grid
        return resample_abs_pos_embed(table, new_size=grid, old_size=usual, num_prefix_tokens=0)

    def _begin(self, fresh: bool) -> None:
        """Initialise the weights as the paper's code does."""
        decoder = [module for name, module in self.named_modules() if name.startswith('decoder_')]
        for module in [*decoder, *(self.backbone.modules() if fresh else ())]:
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        if fresh:
            for name, parameter in self.backbone.named_parameters():
                if name.endswith('_token'):
                    nn.init.normal_(parameter, std=0.02)
            self.backbone.fix_positions(sincos_table(self.backbone.grid, self.backbone.embed_dim))


def patchify(imgs: Tensor, patch_size: int) -> Tensor:
    """Return the patches (B, L, p * p * 3) of `imgs` (B, 3, h * p, w * p), row by row."""
    cells = imgs.unflatten(-1, (-1, patch_size)).unflatten(-3, (-1, patch_size))  # (B, 3, h, p, w, p)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def sincos_table(grid: tuple[int, int], channels: int) -> Tensor:
    """Return the positions (h * w, channels) float32 of the MAE paper's code: columns fill the first half, rows the
    second, each with sines and then cosines of falling frequencies. Raises ConfigError unless 4 divides `channels`.
    """
    why = 'each of two directions takes as many sines as cosines'
    check(channels % 4 == 0, 'MaskedAutoencoder.decoder_channels', channels, why, 'choose a multiple of 4')
    falling = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing='ij')
    angles = [coordinates.flatten()[:, None] * falling for coordinates in (columns, rows)]  # each (h * w, channels / 4)
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


def _check(backbone: nn.Module | dict, mask_ratio: float, fresh: bool) -> None:
    why = 'it is the share of masked patches: some must be visible, and some masked'
    check(0 < mask_ratio < 1, 'MaskedAutoencoder.mask_ratio', mask_ratio, why, 'choose a number between 0 and 1')
    pretrained = fresh and isinstance(backbone, dict) and backbone.get('pretrained')
    why = 'a fresh encoder would lose its pretrained weights'
    fix = 'set fresh=False to train the pretrained encoder further, or pretrained=False'
    check(not pretrained, 'MaskedAutoencoder.backbone.pretrained', pretrained, why, fix)
