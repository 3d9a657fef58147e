"""UPerNet: pyramid pooling on the coarsest map, a top-down pyramid, and one fused prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitdense.layers.blocks import ConvBlock, Norm, pixel_classifier
from vitdense.ops.padding import channels_last, extents_of, hold_edges, resize, whole_map, zero_padding
from vitdense.ops.resample import apply_separable, bilinear_weights, conv3x3_of_resized, pooling_weights
from vitdense.types import ClassLayer, Features, PixelOutputs


class UPerNetHead(nn.Module):
    """UPerNet (Xiao et al. 2018, section 3.1) for semantic segmentation, with an auxiliary FCN head in training.

    The coarsest map passes pyramid pooling at `pool_scales`; every finer map is projected to `channels`, added to
    the resized map above it and smoothed by a 3x3 convolution. All levels, resized to the finest, are fused by one
    3x3 convolution and classified: logits at the stride of the finest map. `dropout` is the probability that a whole
    channel is dropped before a classifier. `norm` is 'batch', as published, or 'layer' (over the channels of each
    cell), for mixtures of data sets and for batches of one image.

    The auxiliary head (one 3x3 convolution of `aux_channels`, Long et al. 2015) reads map `aux_index`, or the
    coarsest where there are fewer maps; None leaves it out. Its logits are in `aux`, in training only.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        aux_channels: int = 256,
        aux_index: int | None = 2,
        dropout: float = 0.1,
        norm: Norm = 'batch',
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.pooling = PyramidPooling(coarsest, channels, scales=pool_scales, norm=norm)
        self.laterals = nn.ModuleList(ConvBlock(num, channels, kernel_size=1, norm=norm) for num in finer)
        self.smooths = nn.ModuleList(ConvBlock(channels, channels, kernel_size=3, norm=norm) for _ in finer)
        self.fuse = ConvBlock(channels * len(in_channels), channels, kernel_size=3, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = pixel_classifier(channels, num_classes)
        self.aux_index = None if aux_index is None else min(aux_index, len(finer))
        self.aux = None
        if self.aux_index is not None:
            self.aux = nn.Sequential(
                ConvBlock(in_channels[self.aux_index], aux_channels, kernel_size=3, norm=norm),
                nn.Dropout2d(dropout),
                pixel_classifier(aux_channels, num_classes),
            )
        self.class_layers = (ClassLayer('classifier'), *([] if self.aux is None else [ClassLayer('aux.2')]))

    def forward(self, features: Features) -> PixelOutputs:
        """Read `features.maps`, fine to coarse; return logits (B, num_classes, h, w) on the grid of the finest."""
        extents = extents_of(features.valid, features.maps, self.strides)
        maps = [channels_last(zero_padding(x, extent)) for x, extent in zip(features.maps, extents, strict=True)]
        fused = self._fuse(self._pyramid(maps, extents), extents)
        logits = self.classifier(self.dropout(fused))
        aux = ()
        if self.aux is not None and self.training:
            aux = (hold_edges(self.aux(maps[self.aux_index]), extents[self.aux_index]),)
        return PixelOutputs(hold_edges(logits, extents[0]), features.input_size, aux)  # logits will be resized too

    def _pyramid(self, maps: Sequence[Tensor], extents: Sequence[Tensor | None]) -> list[Tensor]:
        """Return one (B, channels, h_i, w_i) for each map, each informed by all coarser ones."""
        top = self.pooling(maps[-1], extents[-1])
        levels = [top]
        for index in reversed(range(len(self.laterals))):
            size = tuple(maps[index].shape[-2:])
            top = self.laterals[index](maps[index]) + resize(top, size, extents[index + 1])
            levels.insert(0, self.smooths[index](zero_padding(top, extents[index])))
        return levels

    def _fuse(self, levels: Sequence[Tensor], extents: Sequence[Tensor | None]) -> Tensor:
        """Return the fusing convolution of all levels resized to the finest, without building their concatenation."""
        size = tuple(levels[0].shape[-2:])
        weights = self.fuse.conv.weight.chunk(len(levels), dim=1)
        fused = None
        for x, weight, extent in zip(levels, weights, extents, strict=True):
            part = conv3x3_of_resized(x, weight, size, extent, extents[0])
            fused = part if fused is None else fused.add_(part)
        return self.fuse.finish(fused)


class PyramidPooling(nn.Module):
    """The pyramid pooling module of PSPNet (Zhao et al. 2017, section 3.2) with its 3x3 bottleneck.

    The map is averaged into s x s bins for every s of `scales`, projected to `channels`, resized back, concatenated
    with the map itself and fused. Bins divide each image, not the padded input. `norm`: see `ConvBlock`.

    Raises ValueError for scales that are no numbers from 1 to 64.
    """

    def __init__(
        self, in_channels: int, channels: int, *, scales: Sequence[int] = (1, 2, 3, 6), norm: Norm = 'batch'
    ) -> None:
        super().__init__()
        if not all(isinstance(scale, int) and 1 <= scale <= 64 for scale in scales):
            raise ValueError(f'scales are numbers of bins on a side, from 1 to 64: got {tuple(scales)}')
        self.scales = tuple(scales)
        self.projections = nn.ModuleList(
            ConvBlock(in_channels, channels, kernel_size=1, norm=norm) for _ in self.scales
        )
        self.bottleneck = ConvBlock(in_channels + len(self.scales) * channels, channels, kernel_size=3, norm=norm)

    def forward(self, x: Tensor, extents: Tensor | None = None) -> Tensor:
        """Map `x` (B, in_channels, h, w) to (B, channels, h, w); `extents` (B, 2) are the cells of each image."""
        x = zero_padding(x, extents)  # a weight of zero does not silence a NaN
        height, width = x.shape[-2:]
        used = whole_map(x) if extents is None else extents
        context = [x]
        for scale, project in zip(self.scales, self.projections, strict=True):
            pooled = project(
                apply_separable(
                    pooling_weights(scale, height, used_in=used[:, 0]),
                    x,
                    pooling_weights(scale, width, used_in=used[:, 1]),
                )
            )  # (B, channels, s, s)
            context.append(apply_separable(_grow(height, scale, used[:, 0]), pooled, _grow(width, scale, used[:, 1])))
        return self.bottleneck(torch.cat(context, dim=1))


def _grow(num_out: int, scale: int, used: Tensor) -> Tensor:
    """Return (B, num_out, scale) weights that resize `scale` bins to the `used` (B,) cells of each image."""
    return bilinear_weights(
        num_out, scale, used_out=used, used_in=torch.full_like(used, scale), ratio=scale / used[:, None]
    )
