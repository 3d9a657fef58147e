"""Deformable-DETR, its two-stage form, DINO, LW-DETR and RF-DETR: one head made of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from vitdense.arguments import check
from vitdense.heads.detr.decoder import DeformableDecoder
from vitdense.heads.detr.levels import LevelProjection
from vitdense.heads.detr.predictors import BoxDecoding
from vitdense.heads.detr.queries import (
    LearnedQueries,
    NoisedQueries,
    Queries,
    QuerySelection,
    SelectedQueries,
    self_attention_mask,
)
from vitdense.heads.detr.transformer import DeformableEncoder
from vitdense.ops.padding import region_sizes
from vitdense.registry import build
from vitdense.types import DenoisingQueries, Features, QueryOutputs


class DeformableDetrHead(nn.Module):
    """Queries that look at a few points of several maps (Deformable-DETR, Zhu et al. 2021, arXiv 2010.04159).

    **Maps.** Those of the adapter, each brought to `channels` (`norm` as in `LevelProjection`), and coarser ones until
    there are `num_levels` (None: four, or as many as the adapter gives if these are more). The cells of all levels
    attend to each other in `num_encoder_layers` deformable layers; with 0 the decoder reads the maps as they come.

    **Queries.** `num_queries` learned ones, or with `selection` the best cells of a first stage. `groups` sets of
    queries that do not attend to each other are decoded in training, the first of them in evaluation (Group DETR, Chen
    et al. 2022, arXiv 2207.13085). With `denoising` the head also decodes denoising queries: noised objects (DINO,
    Zhang et al. 2022, arXiv 2203.03605, section 3.3).

    **Boxes.** `decoding` says how decoder layers predict and refine them.

    Logits are for a sigmoid. In training `aux` holds the predictions of earlier decoder layers, and `proposals` those
    of the first stage. Deformable-DETR: no options, or `selection=QuerySelection()`. DINO: `content='learned'` and
    `class_agnostic=False`, `anchors`, `look_forward_twice`, `final_norm` and `denoising`. LW-DETR and RF-DETR: those of
    configs/_base_/real_time_detr.py.

    Raises ValueError for options that exclude each other.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[float],
        num_classes: int,
        *,
        channels: int = 256,
        num_levels: int | None = None,
        norm: Literal['group', 'layer', 'none'] = 'group',
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        cross_heads: int | None = None,
        num_points: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        temperature: float = 10000.0,
        offset: float = -0.5,
        num_queries: int = 300,
        groups: int = 1,
        selection: QuerySelection | dict | None = None,
        decoding: BoxDecoding | dict | None = None,
        denoising: bool = False,
    ) -> None:
        super().__init__()
        selection, decoding = build(selection), build(decoding) or BoxDecoding()
        num_levels = max(4, len(in_channels)) if num_levels is None else num_levels
        _check(selection, decoding, denoising, num_queries=num_queries, num_levels=num_levels)
        self.num_classes, self.num_queries, self.groups = num_classes, num_queries, groups
        sampling = dict(num_levels=num_levels, num_points=num_points)
        layer = dict(num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
        position = dict(num_levels=num_levels, temperature=temperature, offset=offset)
        self.project = LevelProjection(in_channels, strides, channels, num_levels, norm=norm)
        self.encoder = None
        if num_encoder_layers:
            self.encoder = DeformableEncoder(channels, num_encoder_layers, layer=sampling | layer, **position)
        if selection is None:
            self.queries = LearnedQueries(channels, num_queries, groups, anchors=decoding.anchors)
        else:
            numbers = (channels, num_classes, num_queries, groups)
            self.queries = SelectedQueries(*numbers, decoding.apply_deltas, selection, anchors=decoding.anchors)
        self.noised = NoisedQueries(channels, num_classes) if denoising else None
        attention = sampling | dict(num_heads=cross_heads or num_heads)
        self.decoder = DeformableDecoder(
            channels, num_decoder_layers, num_classes, decoding, attention=attention, layer=layer
        )
        if selection is None and not decoding.anchors:  # boxes begin small, not as half of the image (authors' code)
            nn.init.constant_(self.decoder.box_predictors[0].linears[-1].bias[2:], -2.0)

    def forward(self, features: Features, denoising_queries: DenoisingQueries | None = None) -> QueryOutputs:
        """Read `features.maps`; return logits (B, Q, num_classes) and boxes (B, Q, 4).

        Q is `num_queries`, in training times `groups`. Raises ConfigError for denoising queries without `denoising`.
        """
        levels = self.project(features)
        if self.encoder is not None:
            levels = self.encoder(levels)
        groups = self.groups if self.training else 1
        queries, proposals = self.queries(levels, groups)
        mask = None
        if denoising_queries is not None or (self.noised is not None and self.training):
            queries, mask = self._add_noised(queries, groups, denoising_queries)
        predictions = self.decoder(queries, levels, groups=groups, mask=mask)
        sizes = region_sizes(features.valid, levels.tokens, features.input_size)
        *aux, last = _outputs(predictions, sizes, slice(self.num_queries * groups))
        outputs = last._replace(aux=tuple(aux), groups=groups)
        if proposals is not None:
            outputs = outputs._replace(proposals=proposals._replace(sizes=sizes))
        if denoising_queries is not None:
            *aux, restored = _outputs(predictions, sizes, slice(self.num_queries * groups, None))
            outputs = outputs._replace(denoising=restored._replace(aux=tuple(aux)), denoising_queries=denoising_queries)
        return outputs

    def _add_noised(
        self, queries: Queries, groups: int, denoising_queries: DenoisingQueries | None
    ) -> tuple[Queries, Tensor | None]:
        """Return all queries, those of `denoising_queries` last, and the mask of their self-attention."""
        why = 'the task makes noised objects, and the head does not embed their classes'
        fix = 'set denoising=True in the head, or remove denoising from the task'
        check(self.noised is not None, 'DeformableDetrHead.denoising', False, why, fix)
        if denoising_queries is None:
            return self.noised(queries, None, None), None
        positions = None if queries.positions is None else self.queries.positions_of(denoising_queries.boxes)
        return self.noised(queries, denoising_queries, positions), self_attention_mask(
            self.num_queries, groups, denoising_queries
        )


def _outputs(predictions: Sequence[tuple[Tensor, Tensor]], sizes: Tensor, queries: slice) -> list[QueryOutputs]:
    """Return the predictions of some queries, one record for each decoder layer."""
    return [QueryOutputs(logits[:, queries], boxes=boxes[:, queries], sizes=sizes) for logits, boxes in predictions]


def _check(
    selection: QuerySelection | None, decoding: BoxDecoding, denoising: bool, *, num_queries: int, num_levels: int
) -> None:
    if selection is None and not decoding.anchors and (decoding.relative or denoising):
        option = 'denoising' if denoising else 'BoxDecoding(relative=True)'
        raise ValueError(f'{option} needs queries that are boxes: a selection, or BoxDecoding(anchors=True)')
    if not 1 <= num_queries <= 10_000 or num_levels > 16:
        raise ValueError(f'num_queries={num_queries} is from 1 to 10,000, num_levels={num_levels} at most 16')
