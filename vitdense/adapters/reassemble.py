"""Reassemble operations of DPT: a pyramid from ViT layers, with the class token as readout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vitdense.arguments import check_choice
from vitdense.ops.padding import map_extents, zero_padding
from vitdense.types import Features, LayerRequest

SCALES = (4, 2, 1, 0.5)  # of the ViT's grid, fine to coarse


class Reassemble(nn.Module):
    """The reassemble operations of DPT (Ranftl et al. 2021, section 3.1): one level from each of four layers.

    `readout` is the use of the class token: 'ignore' drops it, 'add' adds it to every patch, 'project' joins
    it to every patch and brings both back to the ViT's width by a linear layer and GELU, one for each level. A 1x1
    convolution then brings each level to its `channels`; transposed convolutions (x4, x2), nothing, and a 3x3
    convolution of stride 2 bring layers, shallow to deep, to strides p/4, p/2, p and 2p for patches of p pixels.
    `normed` applies the ViT's final norm to each layer first; DPT does not. `has_cls` is that of the backbone.

    Raises ValueError for a readout of the class token of a ViT without one.
    """

    def __init__(
        self,
        in_channels: int,
        patch_stride: int,
        *,
        has_cls: bool = True,
        layers: Sequence[int] = (2, 5, 8, 11),
        normed: bool = False,
        channels: Sequence[int] = (96, 192, 384, 768),
        readout: Literal['ignore', 'add', 'project'] = 'project',
    ) -> None:
        super().__init__()
        check_choice('Reassemble.readout', readout, ('ignore', 'add', 'project'))
        if readout != 'ignore' and not has_cls:
            raise ValueError(f"readout={readout!r} reads a class token, which this ViT does not have; use 'ignore'")
        if len(layers) != len(SCALES) or len(channels) != len(SCALES):
            raise ValueError(
                f'Reassemble makes {len(SCALES)} levels, got layers={tuple(layers)} and channels={tuple(channels)}'
            )
        self.patch_stride = patch_stride
        self.readout = readout
        self.layers = tuple(LayerRequest(index, normed) for index in layers)
        self.strides = tuple(patch_stride / scale for scale in SCALES)
        self.out_channels = tuple(channels)
        self.mixes = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * in_channels, in_channels), nn.GELU())
            for _ in (channels if readout == 'project' else ())
        )
        self.projections = nn.ModuleList(nn.Conv2d(in_channels, width, kernel_size=1) for width in channels)
        self.resizes = nn.ModuleList(_resize(width, scale) for width, scale in zip(channels, SCALES, strict=True))

    def forward(self, features: Features, imgs: Tensor) -> Features:
        """Return `features` with `maps` (B, channels[i], h_i, w_i) at `strides`; `imgs` is not read."""
        extents = map_extents(features.valid, self.patch_stride, tuple(features.layers[0].shape[-2:]))
        maps = []
        for level, (projection, resize) in enumerate(zip(self.projections, self.resizes, strict=True)):
            x = projection(self._read(features, level))
            maps.append(resize(zero_padding(x, extents)))
        return features._replace(maps=tuple(maps))

    def _read(self, features: Features, level: int) -> Tensor:
        """Return the patches (B, C, h, w) of a level with the readout of the class token."""
        x = features.layers[level]
        if self.readout == 'ignore':
            return x
        cls = features.cls[level][:, :, None, None]  # (B, C, 1, 1)
        if self.readout == 'add':
            return x + cls
        both = torch.cat([x, cls.expand_as(x)], dim=1).permute(0, 2, 3, 1)  # (B, 2C, h, w) -> (B, h, w, 2C)
        return self.mixes[level](both).permute(0, 3, 1, 2)


def _resize(channels: int, scale: float) -> nn.Module:
    if scale > 1:
        return nn.ConvTranspose2d(channels, channels, kernel_size=int(scale), stride=int(scale))
    if scale == 1:
        return nn.Identity()
    return nn.Conv2d(channels, channels, kernel_size=3, stride=int(1 / scale), padding=1)
