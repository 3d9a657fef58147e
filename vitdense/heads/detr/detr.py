"""DETR: detection as the prediction of a set, with a plain encoder-decoder transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitdense.arguments import check
from vitdense.heads.detr.attention import Attention
from vitdense.heads.detr.position import sine_positions
from vitdense.heads.detr.predictors import BoxPredictor
from vitdense.heads.detr.transformer import DecoderLayer, EncoderLayer
from vitdense.ops.padding import map_extents, rectangles, region_sizes, resize
from vitdense.types import ClassLayer, DenoisingQueries, Features, QueryOutputs


class DetrHead(nn.Module):
    """The encoder-decoder with learned queries of DETR (Carion et al. 2020), on maps of one stride.

    The cells of the map attend to each other in `num_encoder_layers` layers; then `num_queries` learned queries, the
    same for every image, attend to each other and to the cells in `num_decoder_layers` layers. Each query predicts
    `num_classes` + 1 logits, the last of which means: no object, and a box. Where the adapter gives several maps, each
    has a 1x1 convolution of its own and their sum, on the grid of map `level`, is read.

    In training `aux` holds the predictions after every earlier decoder layer.
    """

    class_layers = (ClassLayer('class_predictor', num_extra=1),)

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        channels: int = 256,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_queries: int = 100,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        level: int = -1,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.level = level
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
        settings = dict(num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
        self.encoder = nn.ModuleList(EncoderLayer(channels, **settings) for _ in range(num_encoder_layers))
        self.decoder = nn.ModuleList(
            DecoderLayer(channels, Attention(channels, num_heads, dropout=dropout), **settings)
            for _ in range(num_decoder_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.num_queries = num_queries
        self.queries = nn.Parameter(torch.randn(num_queries, channels))
        self.class_predictor = nn.Linear(channels, num_classes + 1)
        self.box_predictor = BoxPredictor(channels, zero=False)

    def forward(self, features: Features, denoising_queries: DenoisingQueries | None = None) -> QueryOutputs:
        """Read `features.maps`; return logits (B, Q, num_classes + 1) and boxes (B, Q, 4).

        Raises ConfigError for denoising queries, which need queries that are boxes.
        """
        why = 'the queries of DetrHead are learned and do not start from boxes'
        fix = 'remove denoising from the task, or use DeformableDetrHead(denoising=True)'
        check(denoising_queries is None, 'DetectionTask.denoising', True, why, fix)
        x, extents = self._join(features)
        positions = sine_positions(x, x.shape[1], extents)  # (B or 1, S, C)
        mask = None if extents is None else rectangles(extents, tuple(x.shape[-2:])).flatten(1)[:, None, None]
        sizes = region_sizes(features.valid, x, features.input_size)
        x = x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, S, C)
        for layer in self.encoder:
            x = layer(x, positions, mask)
        predictions = [self._predict(queries, sizes) for queries in self._decode(x, positions, mask)]
        return predictions[-1]._replace(aux=tuple(predictions[:-1]))

    def _join(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Return the sum of all projected maps (B, C, h, w) on the grid of one, and its extents."""
        size = tuple(features.maps[self.level].shape[-2:])
        x = 0
        for each, stride, project in zip(features.maps, self.strides, self.projections, strict=True):
            extents = map_extents(features.valid, stride, tuple(each.shape[-2:]))
            x = x + resize(project(each), size, extents)
        return x, map_extents(features.valid, self.strides[self.level], size)

    def _decode(self, cells: Tensor, positions: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Return the normalised queries (B, Q, C) after every layer in training, after the last one otherwise."""
        placed = cells + positions
        x = placed.new_zeros(placed.shape[0], *self.queries.shape)
        states = []
        for index, layer in enumerate(self.decoder):
            x = layer(x, self.queries, (placed, cells, mask))
            if self.training or index + 1 == len(self.decoder):
                states.append(self.norm(x))
        return states

    def _predict(self, queries: Tensor, sizes: Tensor) -> QueryOutputs:
        boxes = self.box_predictor(queries).sigmoid()
        return QueryOutputs(self.class_predictor(queries), boxes=boxes, sizes=sizes)
