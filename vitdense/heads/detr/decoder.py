"""The decoder of Deformable-DETR and its successors, with the predictors of classes and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vitdense.heads.detr.attention import MLP
from vitdense.heads.detr.levels import FeatureLevels
from vitdense.heads.detr.position import rows_first, sine_boxes
from vitdense.heads.detr.predictors import BoxDecoding, BoxPredictor, class_predictor
from vitdense.heads.detr.queries import Queries
from vitdense.heads.detr.transformer import DecoderLayer
from vitdense.layers.deform_attention import DeformableAttention
from vitdense.types import ClassLayer


class DeformableDecoder(nn.Module):
    """Layers in which queries attend to each other and to a few points of every level (Zhu et al. 2021, section 4.1).

    `attention` and `layer` are the arguments of each layer. A refining layer starts from the box that the layer before
    predicted (in DINO's own code the references of the next layer are predicted before the final norm, the outputs
    after it; here both are the same box).
    """

    def __init__(
        self,
        channels: int,
        num_layers: int,
        num_classes: int,
        decoding: BoxDecoding,
        *,
        attention: dict[str, Any],
        layer: dict[str, Any],
    ) -> None:
        super().__init__()
        self.channels, self.apply_deltas = channels, decoding.apply_deltas
        self.refine, self.look_forward_twice = decoding.refine, decoding.look_forward_twice
        self.layers = nn.ModuleList(
            DecoderLayer(channels, DeformableAttention(channels, **attention), **layer) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels) if decoding.final_norm else nn.Identity()
        self.position_encoder = MLP(2 * channels, channels, channels, num_layers=2) if decoding.anchors else None
        shared = not decoding.refine if decoding.shared_predictors is None else decoding.shared_predictors
        num_predictors = 1 if shared else num_layers
        self.class_predictors = nn.ModuleList(class_predictor(channels, num_classes) for _ in range(num_predictors))
        self.class_layers = tuple(ClassLayer(f'class_predictors.{index}') for index in range(num_predictors))
        self.box_predictors = nn.ModuleList(BoxPredictor(channels) for _ in range(num_predictors))

    def forward(
        self, queries: Queries, levels: FeatureLevels, *, groups: int = 1, mask: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return logits (B, Q, num_classes) and boxes (B, Q, 4) cxcywh of every layer in training, else of the last.

        `groups` and `mask` are those of the self-attention in `DecoderLayer`.
        """
        x, references, positions = queries.content, queries.references, queries.positions
        start = references  # of the next deltas: `references`, with a gradient where it looks forward twice
        ratios = levels.ratios()[:, None]  # (B or 1, 1, L, 2)
        predictions = []
        for index, layer in enumerate(self.layers):
            if self.position_encoder is not None and (index == 0 or self.refine):
                positions = self._encode(references)
            scale = ratios.repeat(1, 1, 1, references.shape[-1] // 2)
            memory = (references[:, :, None] * scale, levels.tokens, levels.grids, levels.valid)  # (B, Q, L, 2 or 4)
            x = layer(x, positions, memory, mask=mask, groups=groups)
            predicts = self.training or index + 1 == len(self.layers)
            if not (predicts or self.refine):
                continue
            normed = self.norm(x)
            deltas = _of(self.box_predictors, index)(normed)
            boxes = self.apply_deltas(start, deltas)
            if predicts:
                predictions.append((_of(self.class_predictors, index)(normed), boxes))
            if self.refine:
                # the gradient of the next layer reaches these deltas, not the boxes that they refine
                start = self.apply_deltas(references, deltas) if self.look_forward_twice else boxes.detach()
                references = start.detach()
        return predictions

    def _encode(self, references: Tensor) -> Tensor:
        """Return the positions (B, Q, C) of queries that are boxes (B, Q, 4) (DAB-DETR, equations 2 and 3)."""
        encoded = sine_boxes(rows_first(references), self.channels // 2)
        return self.position_encoder(encoded.to(self.position_encoder.linears[0].weight.dtype))


def _of(predictors: Sequence[nn.Module], index: int) -> nn.Module:
    return predictors[min(index, len(predictors) - 1)]  # one for each layer, or one for all
