"""Pyramid pooling: context of the whole picture at every cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitdense.layers.blocks import ConvBlock, Norm
from vitdense.ops.padding import whole_map, zero_padding
from vitdense.ops.resample import apply_separable, bilinear_weights, pooling_weights


class PyramidPooling(nn.Module):
    """The pyramid pooling module of PSPNet (Zhao et al. 2017, section 3.2) with its 3x3 bottleneck.

    The map is averaged into s x s bins for every s of `scales`, projected to `channels`, resized back, concatenated
    with the map itself and fused. Bins divide each picture, not the padded plane it lies in. `norm`: see `ConvBlock`.

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
        """Map `x` (B, in_channels, h, w) to (B, channels, h, w); `extents` (B, 2) are the cells of each picture."""
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
    """Return (B, num_out, scale) weights that resize `scale` bins to the `used` (B,) cells of each picture."""
    return bilinear_weights(
        num_out, scale, used_out=used, used_in=torch.full_like(used, scale), ratio=scale / used[:, None]
    )
