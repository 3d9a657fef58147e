"""Linear probing of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vitdense.arguments import check_choice
from vitdense.layers.blocks import BatchNorm2d, pixel_classifier
from vitdense.ops.padding import extents_of, hold_edges, resize
from vitdense.types import ClassLayer, Features, PixelOutputs


class LinearHead(nn.Module):
    """Dropout, normalisation and one 1x1 convolution over all maps together.

    Maps are resized to the finest one and concatenated. `norm='batch'` without dropout is the linear evaluation of
    DINOv2 (Oquab et al. 2023, section 7.4), `norm='batch', dropout=0.1` that of DINOv3 (Simeoni et al. 2025),
    `norm='layer'` the fine-tuned linear decoder of benchmark-vfm-ss (Kerssies et al. 2024). `dropout` is the
    probability that a whole channel is dropped. Logits come at the stride of the finest map.
    """

    class_layers = (ClassLayer('classifier'),)

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        norm: Literal['batch', 'layer', 'none'] = 'batch',
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        norms = {'batch': BatchNorm2d, 'layer': LayerNorm2d, 'none': nn.Identity}
        check_choice('LinearHead.norm', norm, tuple(norms))
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.dropout = nn.Dropout2d(dropout)
        self.norm = norms[norm](sum(in_channels))
        self.classifier = pixel_classifier(sum(in_channels), num_classes)

    def forward(self, features: Features) -> PixelOutputs:
        """Read `features.maps`; return logits (B, num_classes, h, w) on the grid of the finest map."""
        extents = extents_of(features.valid, features.maps, self.strides)
        size = tuple(features.maps[0].shape[-2:])
        x = self._join([resize(x, size, extent) for x, extent in zip(features.maps, extents, strict=True)])
        logits = self.classifier(self.norm(self.dropout(x)))
        return PixelOutputs(hold_edges(logits, extents[0]), features.input_size)  # logits will be resized too

    @staticmethod
    def _join(maps: Sequence[Tensor]) -> Tensor:
        return maps[0] if len(maps) == 1 else torch.cat(list(maps), dim=1)
