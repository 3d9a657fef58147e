"""Spatial tuning adapter of DEIMv2: convolutional detail features fused with layers of a plain ViT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.layers.blocks import conv_norm
from vitdense.ops.padding import map_extents, rectangles, zero_padding
from vitdense.ops.resample import restride
from vitdense.types import Features, LayerRequest

STRIDES = (8.0, 16.0, 32.0)


class SpatialTuning(nn.Module):
    """The spatial tuning adapter of DEIMv2 (Huang et al. 2025, section 3), a light ViT-Adapter without attention.

    Convolutions on the image, each with batch normalisation, and a 3x3 max-pool give maps at strides 8, 16 and 32 of
    2, 4 and 4 times `detail_channels`. The ViT's layers, shallow to deep, are resized to the same strides (one layer
    serves all three); both are concatenated and brought to `channels` by a 1x1 convolution with batch normalisation.
    `normed` applies the ViT's final norm to each layer, as DEIMv2 does on DINOv3. Patches may have any size.
    """

    def __init__(
        self,
        in_channels: int,
        patch_stride: int,
        *,
        layers: Sequence[int] = (5, 8, 11),
        normed: bool = True,
        channels: int = 256,
        detail_channels: int = 16,
    ) -> None:
        super().__init__()
        if len(layers) not in (1, len(STRIDES)):
            raise ValueError(f'SpatialTuning reads {len(STRIDES)} layers or one for all, got layers={tuple(layers)}')
        self.patch_stride = patch_stride
        self.layers = tuple(LayerRequest(index, normed) for index in layers)
        self.strides = STRIDES
        self.out_channels = (channels,) * len(STRIDES)
        widths = tuple(factor * detail_channels for factor in (1, 2, 4, 4))
        self.stem = conv_norm(3, widths[0], kernel_size=3, stride=2)
        self.convs = nn.ModuleList(
            conv_norm(width, wider, kernel_size=3, stride=2)
            for width, wider in zip(widths[:-1], widths[1:], strict=True)
        )
        self.fuse = nn.ModuleList(conv_norm(in_channels + width, channels, kernel_size=1) for width in widths[1:])

    def forward(self, features: Features, imgs: Tensor) -> Features:
        """Return `features` with `maps` (B, channels, h_i, w_i) at strides 8, 16, 32; reads `imgs` (B, 3, H, W)."""
        layers = features.layers * (len(STRIDES) // len(features.layers))
        maps = []
        for x, detail, stride, fuse in zip(
            layers, self._details(imgs, features.valid), STRIDES, self.fuse, strict=True
        ):
            size = tuple(detail.shape[-2:])
            own = map_extents(features.valid, self.patch_stride, tuple(x.shape[-2:]))
            meaning = restride(x, size, stride / self.patch_stride, own, map_extents(features.valid, stride, size))
            maps.append(fuse(torch.cat([meaning, detail], dim=1)))
        return features._replace(maps=tuple(maps))

    def _details(self, imgs: Tensor, valid: Tensor | None) -> list[Tensor]:
        """Return the detail features at strides 8, 16 and 32."""
        x = zero_padding(imgs, map_extents(valid, 1, tuple(imgs.shape[-2:])))
        x = functional.gelu(self.stem(x))
        x = _pool(x, map_extents(valid, 2, tuple(x.shape[-2:])))
        maps = []
        for stride, conv in zip(STRIDES, self.convs, strict=True):
            x = conv(zero_padding(x, map_extents(valid, stride / 2, tuple(x.shape[-2:]))))
            maps.append(x)
            x = functional.gelu(x)
        return maps


def _pool(x: Tensor, extents: Tensor | None) -> Tensor:
    """Return the 3x3 maximum of stride 2 over the cells of each image."""
    if extents is not None:
        inside = rectangles(extents, tuple(x.shape[-2:]))[:, None]
        x = x.masked_fill(~inside, torch.finfo(x.dtype).min)  # the padding value of max-pool
    return functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)
