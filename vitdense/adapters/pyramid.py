"""Feature pyramids from a plain ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from vitdense.arguments import check_choice
from vitdense.layers.blocks import BatchNorm2d, conv_norm
from vitdense.ops.padding import channels_last, map_extents, zero_padding
from vitdense.types import Features, LayerRequest

SCALES = (4.0, 2.0, 1.0, 0.5)  # of the ViT's grid, fine to coarse: strides 4, 8, 16, 32 for patches of 16


class SimplePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al. 2022, section 3 and appendix A.2), from one layer.

    Transposed convolutions (x4: two, with LayerNorm and GELU between; x2: one) and a 2x2 max-pool bring the map to
    strides p/4, p/2, p and 2p for patches of p pixels; a 1x1 and a 3x3 convolution, each with LayerNorm, bring every
    level to `channels`. `scales` are those of the four to compute, in their order. `extra_level` adds stride 4p by
    taking every second cell of the coarsest level (the p6 of detectors). `normed` applies the ViT's final norm first;
    ViTDet does not.
    """

    def __init__(
        self,
        in_channels: int,
        patch_stride: int,
        *,
        layer: int = -1,
        normed: bool = False,
        channels: int = 256,
        scales: Sequence[float] = SCALES,
        extra_level: bool = False,
    ) -> None:
        super().__init__()
        if not scales or tuple(scales) != tuple(scale for scale in SCALES if scale in scales):
            raise ValueError(f'scales are some of {SCALES}, in this order, got {tuple(scales)}')
        self.extra_level = extra_level
        self.layers = (LayerRequest(layer, normed),)
        self.patch_stride = patch_stride
        self.strides = tuple(patch_stride / scale for scale in (*scales, *([scales[-1] / 2] if extra_level else [])))
        self.out_channels = (channels,) * len(self.strides)
        half = in_channels // 2
        stages = {
            4.0: lambda: nn.Sequential(
                _double(in_channels, half), LayerNorm2d(half), nn.GELU(), _double(half, half // 2)
            ),
            2.0: lambda: _double(in_channels, half),
            1.0: nn.Identity,
            0.5: _halve,
        }
        self.stages = nn.ModuleList(stages[scale]() for scale in scales)
        widths = [{4.0: half // 2, 2.0: half}.get(scale, in_channels) for scale in scales]
        self.reduce = nn.ModuleList(conv_norm(width, channels, kernel_size=1, norm='layer') for width in widths)
        self.smooth = nn.ModuleList(conv_norm(channels, channels, kernel_size=3, norm='layer') for _ in widths)

    def forward(self, features: Features, imgs: Tensor) -> Features:
        """Return `features` with `maps` (B, channels, h_i, w_i) at `strides`; `imgs` is not read."""
        (x,) = features.layers
        x = channels_last(zero_padding(x, map_extents(features.valid, self.patch_stride, tuple(x.shape[-2:]))))
        maps = []
        for stage, reduce, smooth, stride in zip(self.stages, self.reduce, self.smooth, self.strides, strict=False):
            level = reduce(stage(x))
            level = zero_padding(level, map_extents(features.valid, stride, tuple(level.shape[-2:])))
            maps.append(smooth(level))
        if self.extra_level:
            maps.append(functional.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return features._replace(maps=tuple(maps))


class LayerPyramid(nn.Module):
    """A pyramid with one level from each of four layers, as in UPerNet on MAE and BEiT (mmsegmentation,
    configs/mae).

    Layers, shallow to deep, go to scales 4, 2, 1 and 0.5 of the ViT's grid: two transposed convolutions with norm and
    GELU between, one transposed convolution, nothing, a 2x2 max-pool. Every level keeps `in_channels`. `norm` is the
    normalisation between the two. Source: BEiT (Bao et al. 2021), section 3.2 and appendix; for patches of p
    pixels the strides are p/4, p/2, p and 2p.
    """

    def __init__(
        self,
        in_channels: int,
        patch_stride: int,
        *,
        layers: Sequence[int] = (3, 5, 7, 11),
        normed: bool = False,
        norm: Literal['batch', 'layer'] = 'batch',
    ) -> None:
        super().__init__()
        norms = {'batch': BatchNorm2d, 'layer': LayerNorm2d}
        check_choice('LayerPyramid.norm', norm, ('batch', 'layer'))
        if len(layers) != len(SCALES):
            raise ValueError(f'LayerPyramid reads {len(SCALES)} layers, got layers={tuple(layers)}')
        self.layers = tuple(LayerRequest(index, normed) for index in layers)
        self.strides = tuple(patch_stride / scale for scale in SCALES)
        self.out_channels = (in_channels,) * len(SCALES)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    _double(in_channels, in_channels),
                    norms[norm](in_channels),
                    nn.GELU(),
                    _double(in_channels, in_channels),
                ),
                _double(in_channels, in_channels),
                nn.Identity(),
                _halve(),
            ]
        )

    def forward(self, features: Features, imgs: Tensor) -> Features:
        """Return `features` with `maps` (B, in_channels, h_i, w_i) at `strides`; `imgs` is not read."""
        extents = map_extents(features.valid, self.strides[2], tuple(features.layers[0].shape[-2:]))
        layers = [channels_last(zero_padding(x, extents)) for x in features.layers]
        maps = tuple(stage(x) for stage, x in zip(self.stages, layers, strict=True))
        return features._replace(maps=maps)


def _double(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Return a learned x2 upsampling without overlap: no value crosses the edge of an image."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)


def _halve() -> nn.MaxPool2d:
    """Return a 2x2 max-pool with ceil mode: an odd last row or column keeps a cell, so that no map is empty."""
    return nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
