"""Deformable-DETR, its two-stage form, DINO, and the encoder-free designs: one head with options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from vitdense.errors import ConfigError
from vitdense.heads.detr.decoder import DeformableDecoder
from vitdense.heads.detr.levels import LevelProjection
from vitdense.heads.detr.predictors import step_in_logits, step_in_sizes
from vitdense.heads.detr.queries import LearnedQueries, NoisedQueries, Queries, SelectedQueries, self_attention_mask
from vitdense.heads.detr.transformer import DeformableEncoder
from vitdense.ops.padding import region_sizes
from vitdense.types import DenoisingQueries, Features, QueryOutputs


class DeformableDetrHead(nn.Module):
    """Queries that look at a few points of several maps (Deformable-DETR, Zhu et al. 2021, arXiv 2010.04159).

    **Maps.** Those of the adapter, each brought to `channels` (`norm` as in `LevelProjection`), and coarser ones until
    there are `num_levels` (None: four, or as many as the adapter gives if these are more). The cells of all levels
    look at each other in `num_encoder_layers` deformable layers; with 0 the decoder reads the maps as they come.

    **Queries.** `num_queries` learned ones, or with `two_stage` the cells where most is found. What a selected
    query holds is the encoding of its box; with `mixed_selection` a learned content (DINO, Zhang et al. 2022,
    arXiv 2203.03605, section 3.4); with `selected_content` the feature of its cell. With `anchors` every query is a
    box whose position is encoded anew for every decoder layer (DAB-DETR, Liu et al. 2022, arXiv 2201.12329).
    `groups` sets of queries that do not see each other answer in training, the first of them in evaluation
    (Group DETR, Chen et al. 2022, arXiv 2207.13085). `learned_box_deltas` moves each proposal by a learned step.

    **Boxes.** With `refine` each decoder layer steps from the box of the layer before, else all step from the queries'
    references. `look_forward_twice` lets the loss of a layer reach the box predictor of the one before, and no earlier
    one (DINO, section 3.5). Steps are added to the logits of a box, or with `relative_box_deltas` measured in its size.
    `shared_predictors`: all decoder layers predict with the same weights (None: unless they refine). `final_norm`
    normalises queries before they answer.

    **Denoising.** With `denoising` the head decodes denoising queries, noised objects, in training (DINO, section 3.3).

    Logits are for a sigmoid. In training `aux` holds the answers after earlier decoder layers, and `proposals` those of
    the first stage: over every cell, with a single logit, when `class_agnostic` (Deformable-DETR); over the selected
    cells, with `num_classes` logits, otherwise (DINO). `dense_proposals` decides about the cells alone: where all of
    them have `num_classes` logits, they learn from the first step what is where, as few images and short runs need.

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
        two_stage: bool = False,
        class_agnostic: bool = True,
        dense_proposals: bool | None = None,
        mixed_selection: bool = False,
        selected_content: bool = False,
        learned_box_deltas: bool = False,
        anchors: bool = False,
        refine: bool = True,
        look_forward_twice: bool = False,
        relative_box_deltas: bool = False,
        shared_predictors: bool | None = None,
        final_norm: bool = False,
        denoising: bool = False,
    ) -> None:
        super().__init__()
        has_boxes = two_stage or anchors
        _check_needs('refine', refine, look_forward_twice=look_forward_twice)
        selecting = dict(mixed_selection=mixed_selection, selected_content=selected_content)
        _check_needs(
            'two_stage', two_stage, **selecting, learned_box_deltas=learned_box_deltas, dense_proposals=dense_proposals
        )
        _check_needs('two_stage or anchors', has_boxes, relative_box_deltas=relative_box_deltas, denoising=denoising)
        num_levels = max(4, len(in_channels)) if num_levels is None else num_levels
        if not 1 <= num_queries <= 10_000 or num_levels > 16:
            raise ValueError(f'num_queries={num_queries} is from 1 to 10,000, num_levels={num_levels} at most 16')
        self.num_classes, self.num_queries, self.groups = num_classes, num_queries, groups
        step = step_in_sizes if relative_box_deltas else step_in_logits
        sampling = dict(num_levels=num_levels, num_points=num_points)
        layer = dict(num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
        position = dict(num_levels=num_levels, temperature=temperature, offset=offset)
        self.project = LevelProjection(in_channels, strides, channels, num_levels, norm=norm)
        self.encoder = None
        if num_encoder_layers:
            self.encoder = DeformableEncoder(channels, num_encoder_layers, layer=sampling | layer, **position)
        if two_stage:
            dense = class_agnostic if dense_proposals is None else dense_proposals
            kind = dict(class_agnostic=class_agnostic, dense=dense, learned_box_deltas=learned_box_deltas)
            kind |= dict(content=_content(**selecting))
            self.queries = SelectedQueries(channels, num_classes, num_queries, groups, step, anchors=anchors, **kind)
        else:
            self.queries = LearnedQueries(channels, num_queries, groups, anchors=anchors)
        self.noised = NoisedQueries(channels, num_classes) if denoising else None
        self.decoder = DeformableDecoder(
            channels,
            num_decoder_layers,
            num_classes,
            step,
            attention=sampling | dict(num_heads=cross_heads or num_heads),
            layer=layer,
            anchors=anchors,
            refine=refine,
            look_forward_twice=look_forward_twice,
            shared_predictors=not refine if shared_predictors is None else shared_predictors,
            final_norm=final_norm,
        )
        if not has_boxes:  # boxes begin small, not as half of the image (Deformable-DETR's own code)
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
        *aux, found = _outputs(predictions, sizes, slice(self.num_queries * groups))
        outputs = found._replace(aux=tuple(aux), groups=groups)
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
        if self.noised is None:
            raise ConfigError(
                'the head has no denoising queries',
                where='DeformableDetrHead(denoising=False)',
                why='the task sends noised objects, and nothing embeds their classes',
                fix='set denoising=True in the head, or remove denoising from the task',
            )
        if denoising_queries is None:
            return self.noised(queries, None, None), None
        positions = None if queries.positions is None else self.queries.positions_of(denoising_queries.boxes)
        return self.noised(queries, denoising_queries, positions), self_attention_mask(
            self.num_queries, groups, denoising_queries
        )


def _outputs(predictions: Sequence[tuple[Tensor, Tensor]], sizes: Tensor, queries: slice) -> list[QueryOutputs]:
    """Return the answers of some queries, one record for each decoder layer."""
    return [QueryOutputs(logits[:, queries], boxes=boxes[:, queries], sizes=sizes) for logits, boxes in predictions]


def _content(mixed_selection: bool, selected_content: bool) -> Literal['learned', 'selected', 'encoded']:
    if mixed_selection and selected_content:
        raise ValueError('mixed_selection learns what queries hold, selected_content selects it: choose one')
    return 'learned' if mixed_selection else 'selected' if selected_content else 'encoded'


def _check_needs(needed: str, given: bool, **options: bool | None) -> None:
    for option, chosen in options.items():
        if chosen and not given:
            raise ValueError(f'{option}=True needs {needed}=True')
