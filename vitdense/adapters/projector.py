"""Projector of real-time detectors: layers of a plain ViT concatenated and fused to one or more maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vitdense.arguments import check_choice
from vitdense.layers.blocks import BatchNorm2d
from vitdense.ops.padding import channels_last, map_extents, zero_padding
from vitdense.types import Features, LayerRequest

NORMS = {'layer': LayerNorm2d, 'batch': BatchNorm2d}
WIDE = 512  # channels above which a map is narrowed before it is enlarged
Norm = Callable[[int], nn.Module]


class Projector(nn.Module):
    """The projector of LW-DETR (Chen et al. 2024, arXiv 2406.03459, section 3.2) and RF-DETR (roboflow/rf-detr).

    Each of `scales` (of the ViT's grid: 2, 1 or 0.5) gives one map: the `layers` resampled (by a transposed
    convolution, not at all, by a convolution of stride 2), concatenated, mixed by a C2f block with `num_blocks`
    bottlenecks, and normalised over channels. `norm` is the normalisation after convolutions: 'layer' as in RF-DETR,
    'batch' as in LW-DETR, with `norm_eps` added to variances: 1e-5 in LW-DETR and in transformers' RfDetr, 1e-6 in
    RF-DETR's own code. `normed` applies the ViT's final norm to every layer first.
    """

    def __init__(
        self,
        in_channels: int,
        patch_stride: int,
        *,
        layers: Sequence[int] = (2, 5, 8, 11),
        normed: bool = True,
        channels: int = 256,
        scales: Sequence[float] = (1.0,),
        num_blocks: int = 3,
        norm: Literal['layer', 'batch'] = 'layer',
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice('Projector.norm', norm, tuple(NORMS))
        if not scales or set(scales) - {2.0, 1.0, 0.5} or list(scales) != sorted(scales, reverse=True):
            raise ValueError(f'scales={tuple(scales)}: give some of 2, 1 and 0.5, fine to coarse')
        self.layers = tuple(LayerRequest(index, normed) for index in layers)
        self.patch_stride = patch_stride
        self.strides = tuple(patch_stride / scale for scale in scales)
        self.out_channels = (channels,) * len(scales)
        layer = partial(NORMS[norm], eps=norm_eps)
        self.stages = nn.ModuleList(
            ProjectorStage(in_channels, len(layers), channels, scale, num_blocks=num_blocks, norm=layer)
            for scale in scales
        )

    def forward(self, features: Features, imgs: Tensor) -> Features:
        """Return `features` with `maps` (B, channels, h_i, w_i) at `strides`; `imgs` is not read."""
        extents = map_extents(features.valid, self.patch_stride, tuple(features.layers[0].shape[-2:]))
        layers = [channels_last(zero_padding(x, extents)) for x in features.layers]
        maps = tuple(
            stage(layers, features.valid, stride) for stage, stride in zip(self.stages, self.strides, strict=True)
        )
        return features._replace(maps=maps)


class ProjectorStage(nn.Module):
    """One output scale of the projector."""

    def __init__(
        self, in_channels: int, num_layers: int, channels: int, scale: float, *, num_blocks: int, norm: Norm
    ) -> None:
        super().__init__()
        samplers = [_sampler(in_channels, scale, norm) for _ in range(num_layers)]
        self.samplers = nn.ModuleList(sampler for sampler, _ in samplers)
        self.mix = C2f(sum(width for _, width in samplers), channels, num_blocks=num_blocks, norm=norm)
        self.norm = LayerNorm2d(channels)

    def forward(self, layers: Sequence[Tensor], valid: Tensor | None, stride: float) -> Tensor:
        """Return (B, channels, h, w) at `stride` of `layers` (B, C, h', w') whose padding is zero."""
        x = torch.cat([sample(layer) for sample, layer in zip(self.samplers, layers, strict=True)], dim=1)
        return self.norm(self.mix(x, map_extents(valid, stride, tuple(x.shape[-2:]))))


class C2f(nn.Module):
    """The C2f block of YOLOv8, as in LW-DETR: half of the channels pass `num_blocks` pairs of convolutions.

    The input and output of every pair are concatenated and fused by a 1x1 convolution.
    """

    def __init__(self, in_channels: int, channels: int, *, num_blocks: int, norm: Norm) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNorm(in_channels, 2 * half, nn.SiLU(), norm=norm)
        self.conv2 = ConvNorm((2 + num_blocks) * half, channels, nn.SiLU(), norm=norm)
        self.blocks = nn.ModuleList(
            nn.ModuleList(ConvNorm(half, half, nn.SiLU(), kernel_size=3, norm=norm) for _ in range(2))
            for _ in range(num_blocks)
        )

    def forward(self, x: Tensor, extents: Tensor | None = None) -> Tensor:
        """Map `x` (B, in_channels, h, w) to (B, channels, h, w); `extents` (B, 2) are the cells of each image."""
        parts = list(self.conv1(x).chunk(2, dim=1))
        for block in self.blocks:
            x = parts[-1]
            for conv in block:
                x = conv(zero_padding(x, extents))
            parts.append(x)
        return self.conv2(torch.cat(parts, dim=1))


class ConvNorm(nn.Module):
    """Convolution without bias, norm, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation: nn.Module,
        *,
        norm: Norm,
        kernel_size: int = 1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = norm(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


def _sampler(channels: int, scale: float, norm: Norm) -> tuple[nn.Module, int]:
    """Return the layer that resamples a map by `scale`, and its number of output channels."""
    if scale == 1:
        return nn.Identity(), channels
    if scale < 1:
        return ConvNorm(channels, channels, nn.ReLU(), kernel_size=3, stride=2, norm=norm), channels
    if channels <= WIDE:
        return nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2), channels // 2
    narrow = ConvNorm(channels, channels // 2, nn.ReLU(), norm=norm)
    enlarge = nn.ConvTranspose2d(channels // 2, channels // 4, kernel_size=2, stride=2)
    return nn.Sequential(narrow, enlarge), channels // 4
