"""The convolutional decoder of DPT as a segmentation head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.layers.blocks import ConvBlock, Norm, norm_of
from vitdense.ops.padding import channels_last, hold_edges, map_extents, resize, zero_padding
from vitdense.ops.resample import apply_separable, corner_weights
from vitdense.types import ClassLayer, Features, PixelOutputs


class DPTHead(nn.Module):
    """DPT for semantic segmentation (Ranftl et al. 2021, sections 3.1 and 4.2, appendix A).

    Every map is brought to `channels` by a 3x3 convolution. From coarse to fine, each is refined by a residual unit,
    added to what comes from above, refined again, doubled in size and projected. A 3x3 convolution, normalisation,
    ReLU, `dropout` of whole channels and a classifier follow: logits at half the stride of the finest map. `upsample`
    doubles them once more, corner on corner, as the published checkpoints do; without it the task resizes them as those
    of any head. `batch_norm` normalises inside the residual units, which then have no biases. `norm` is 'batch', as
    published, or 'layer' (over the channels of each cell) wherever the head normalises, for mixtures of data sets.

    The auxiliary head (`aux`) is a second classifier of the same map, with its own 3x3 convolution; its logits are in
    `aux`, in training only. On grids that do not halve evenly a map is resized to what comes from above.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        channels: int = 256,
        batch_norm: bool = True,
        dropout: float = 0.1,
        aux: bool = True,
        upsample: bool = False,
        norm: Norm = 'batch',
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.upsample = upsample
        self.convs = nn.ModuleList(
            nn.Conv2d(width, channels, kernel_size=3, padding=1, bias=False) for width in in_channels
        )
        self.fusions = nn.ModuleList(
            Fusion(channels, norm=norm if batch_norm else None, joins=index + 1 < len(in_channels))
            for index in range(len(in_channels))
        )
        self.head = _classifier(channels, num_classes, nn.Dropout2d(dropout), norm)
        self.aux = _classifier(channels, num_classes, nn.Dropout2d(dropout), norm) if aux else None
        self.class_layers = (ClassLayer('head.2'), *([ClassLayer('aux.2')] if aux else []))

    def forward(self, features: Features) -> PixelOutputs:
        """Read `features.maps`, fine to coarse; return logits (B, num_classes, h, w) on twice the finest grid."""
        fused, extents = None, None
        levels = [*zip(features.maps, self.strides, self.convs, self.fusions, strict=True)]
        for x, stride, conv, fusion in reversed(levels):
            own = map_extents(features.valid, stride, tuple(x.shape[-2:]))
            x = conv(channels_last(zero_padding(x, own)))
            if fused is None:
                extents = own
            else:
                x = _match_size(x, tuple(fused.shape[-2:]), own)
            fused = fusion(x, extents, above=fused)
            extents = None if extents is None else 2 * extents
        logits = hold_edges(self.head(fused), extents)
        if self.upsample:
            logits = double(logits, extents)
        aux = (hold_edges(self.aux(fused), extents),) if self.aux is not None and self.training else ()
        return PixelOutputs(logits, features.input_size, aux)


class Fusion(nn.Module):
    """One step of the decoder: join a level to what comes from above, refine, double the size, project."""

    def __init__(self, channels: int, *, norm: Norm | None, joins: bool) -> None:
        super().__init__()
        self.enter = ResidualUnit(channels, norm=norm) if joins else None  # the coarsest joins nothing
        self.refine = ResidualUnit(channels, norm=norm)
        self.project = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor, extents: Tensor | None = None, above: Tensor | None = None) -> Tensor:
        """Map `x` (B, C, h, w) to (B, C, 2h, 2w); `extents` (B, 2) are the cells of each image in `x`."""
        if above is not None:
            x = above + self.enter(x, extents)
        # a 1x1 convolution and a resize change places: a quarter of the products
        return double(self.project(self.refine(x, extents)), extents)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with ReLU before each, around which the input is added (He et al. 2016, RefineNet)."""

    def __init__(self, channels: int, *, norm: Norm | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=norm is None) for _ in range(2)
        )
        self.norms = nn.ModuleList(norm_of(norm, channels) if norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, extents: Tensor | None = None) -> Tensor:
        """Refine `x` (B, C, h, w); `extents` (B, 2) are the cells of each image."""
        refined = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            refined = norm(conv(zero_padding(functional.relu(refined), extents)))
        return x + refined


def double(x: Tensor, extents: Tensor | None = None) -> Tensor:
    """Return `x` (B, C, h, w) resized to twice its size, corners of images on their corners and zeros outside."""
    height, width = x.shape[-2:]
    if extents is None:
        return functional.interpolate(x, size=(2 * height, 2 * width), mode='bilinear', align_corners=True)
    return apply_separable(
        corner_weights(2 * height, height, used_out=2 * extents[:, 0], used_in=extents[:, 0]),
        x,
        corner_weights(2 * width, width, used_out=2 * extents[:, 1], used_in=extents[:, 1]),
    )


def _match_size(x: Tensor, size: tuple[int, int], extents: Tensor | None) -> Tensor:
    """Return `x` (B, C, h, w) resized to the output of the coarser level: sizes differ where a grid does not halve
    evenly. An exported network, whose input size is not known, resizes always.
    """
    if torch.compiler.is_exporting():
        return functional.interpolate(hold_edges(x, extents), size=size, mode='bilinear', align_corners=False)
    return resize(x, size, extents)


def _classifier(channels: int, num_classes: int, dropout: nn.Module, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        ConvBlock(channels, channels, kernel_size=3, norm=norm),
        dropout,
        nn.Conv2d(channels, num_classes, kernel_size=1),
    )
