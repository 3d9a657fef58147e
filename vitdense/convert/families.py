"""Families of published checkpoints: source, licence and conversion of tensor names; every tensor must be used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from vitdense.convert import key_rules as names
from vitdense.convert.deltas import add_base, base_state, check_base
from vitdense.convert.key_rules import CheckpointFamily
from vitdense.convert.renaming import pack_qkv
from vitdense.pretrained.foreign_names import rename
from vitdense.storage.weights import Coverage, State, load_weights

COCO_ROWS = 91  # of classifiers whose rows are COCO's category ids, 0 ... 90
COCO_UNUSED = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # ids without a category
COCO_IDS = tuple(number for number in range(COCO_ROWS) if number not in COCO_UNUSED)


VIT_ADAPTER = CheckpointFamily(
    'ViT-Adapter, UPerNet on DeiT or AugReg',
    source='https://github.com/czczup/ViT-Adapter (segmentation)',
    licence='Apache-2.0',
    evidence='LICENSE of the repository, which says nothing else about its weights',
    rules=names.VIT_ADAPTER,
)
DINOV2_LINEAR = CheckpointFamily(
    'DINOv2, linear segmentation head',
    source='https://github.com/facebookresearch/dinov2 (backbone, and head of ADE20K, VOC or Cityscapes)',
    licence='Apache-2.0',
    evidence='README of the repository: code and weights are released under Apache-2.0',
    rules=names.DINOV2_LINEAR,
    unused=(r'(^|\.)mask_token$',),
    note='Positions are resampled by the rule of timm, without the offset of 0.1 cells of the original code.',
)
MAE_UPERNET = CheckpointFamily(
    'MAE, UPerNet of mmsegmentation',
    source='https://github.com/open-mmlab/mmsegmentation (configs/mae)',
    licence='CC-BY-NC-4.0 (the pretrained MAE they were trained from; mmsegmentation itself is Apache-2.0)',
    evidence='LICENSE of https://github.com/facebookresearch/mae',
    free=False,
    rules=names.MAE_UPERNET,
    unused=(r'\.relative_position_index$',),
)
EOMT = CheckpointFamily(
    'EoMT on DINOv2',
    source='https://huggingface.co/tue-mps',
    licence='MIT (backbone: Apache-2.0)',
    evidence='model cards of tue-mps, LICENSE of https://github.com/tue-mps/eomt',
    rules=names.EOMT,
    unused=(r'^criterion\.', r'pixel_(mean|std)$', r'(^|\.)mask_token$', r'^rope_embeddings\.inv_freq$'),
    classifier='class_head.bias',
    other_rows=1,  # no object
)
EOMT_DINOV3 = EOMT._replace(
    name='EoMT on DINOv3',
    licence='MIT, and the DINOv3 License of Meta for the backbone',
    evidence='model cards of tue-mps; the DINOv3 License has conditions of its own',
    free=False,
    rules=names.EOMT_DINOV3,
    base='DINOv3 of the same size, as transformers, timm (*_qkvb) or its authors name the tensors\n'
    '(for EoMT-L https://huggingface.co/facebook/dinov3-vitl16-pretrain-lvd1689m)',
)
RF_DETR = CheckpointFamily(
    'RF-DETR (nano, small, medium, base, large)',
    source='https://github.com/roboflow/rf-detr, and https://huggingface.co/Roboflow',
    licence='Apache-2.0 (not the XL and 2XL models of rfdetr_plus: PML 1.0)',
    evidence='table of pretrained models of the documentation of rf-detr',
    rules=names.RF_DETR,
    unused=(r'(^|\.)mask_token$', r'(^|\.)_kp_active_mask$'),  # of keypoints, which these models have not
    coco=True,
    classifier='heads.det.decoder.class_predictors.0.bias',
)
LW_DETR = CheckpointFamily(
    'LW-DETR',
    source='https://huggingface.co/xbsu/LW-DETR, and https://huggingface.co/AnnaZhang',
    licence='Apache-2.0',
    evidence='model card of xbsu/LW-DETR',
    rules=names.LW_DETR,
    coco=True,
    classifier='heads.det.decoder.class_predictors.0.bias',
)
FAMILIES = {
    'dinov2-linear': DINOV2_LINEAR,
    'mae-upernet': MAE_UPERNET,
    'vit-adapter': VIT_ADAPTER,
    'eomt': EOMT,
    'eomt-dinov3': EOMT_DINOV3,
    'rf-detr': RF_DETR,
    'lw-detr': LW_DETR,
}


def load_published(
    network: nn.Module,
    state: Mapping[str, Tensor],
    published: CheckpointFamily,
    *,
    where: str,
    base: Mapping[str, Tensor] | None = None,
    rows: Sequence[int] = COCO_IDS,
) -> Coverage:
    """Fill `network` with a published checkpoint `state`, completely or not at all, and return what matched.

    The network is that of the family, with branches 'sem' or 'det'. For `VIT_ADAPTER` it is a `SharedNetwork` of
    UPerNet on a `ViTAdapter`, whose ViT is made with `timm_args=dict(class_token=False, final_norm=False,
    init_values=1.0)`: theirs have LayerScale, but neither of the others. Models without class token resample the table
    of positions to each image by a bicubic rule that differs from timm's; here the table is brought to the grid of
    the network's own table by their rule, so that with `img_size=512` windows of 512 get exactly their positions.
    Classifiers of detectors with more rows than the head has classes, such as a row for each of COCO's 91 category ids,
    give it the rows `rows`. Differences (`EOMT_DINOV3`) are added to the weights `base` of the backbone.

    Raises CheckpointError when anything is missing, left over or of another shape, and for differences without `base`.
    `where` names the source.
    """
    wanted = network.state_dict()
    check_base(state, published, where=where, has_base=base is not None)
    added = {} if base is None else base_state(network, base, published, where=where)

    def convert(trial: State) -> State:
        ours = translate(trial, published, wanted, rows)
        return add_base(ours, added) if added else ours

    return load_weights(network, state, where=where, convert=convert)


def translate(
    state: Mapping[str, Tensor],
    published: CheckpointFamily,
    wanted: Mapping[str, Tensor],
    rows: Sequence[int] = COCO_IDS,
) -> State:
    """Return a published `state` under our names, in the layouts of the tensors `wanted` (a network's state), with the
    `rows` of detection classifiers that have more rows than wanted.
    """
    dispensable = [re.compile(pattern) for pattern in published.unused]
    kept = {name: value for name, value in state.items() if not any(each.search(name) for each in dispensable)}
    ours = pack_qkv({rename(name, published.rules): value for name, value in kept.items()}, wanted)
    ours = _samplers(ours)
    for name, value in ours.items():
        own = wanted.get(name)
        if name.endswith('.pos_embed') and own is not None:
            ours[name] = _positions(value, own)
        elif published.coco and '.class_predictors.' in name and own is not None:
            if own.shape[0] == len(rows) < value.shape[0] and max(rows) < value.shape[0]:
                ours[name] = value[list(rows)]
        elif name.endswith('attn_mask_probs') and own is not None:
            ours[name] = value.view(own.shape)
    return ours


def _samplers(state: State) -> State:
    """Rename the layers of a projector's samplers: a sequence keeps its indices, a single layer has none."""
    rows = {name.partition('.layers.1.')[0] for name in state if '.samplers.' in name and '.layers.1.' in name}
    ours = {}
    for name, value in state.items():
        prefix, separator, rest = name.partition('.layers.')
        if separator and '.samplers.' in prefix:
            name = f'{prefix}.{rest}' if prefix in rows else f'{prefix}.{rest.removeprefix("0.")}'
        ours[name] = value
    return ours


def _positions(table: Tensor, own: Tensor) -> Tensor:
    """Return published positions, (1, N, C) or (N, C), as ours are; a square is resampled where the grids differ."""
    table = table[None] if table.ndim == 2 else table
    ahead = table.shape[1] - math.isqrt(table.shape[1]) ** 2  # prefix tokens
    if table.shape == own.shape or math.isqrt(own.shape[1]) ** 2 != own.shape[1] or ahead > 1:
        return table
    side = math.isqrt(own.shape[1])
    return _resample(table[:, ahead:], (side, side))


def _resample(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return positions (1, s * s, C) of a square as those of `grid` (h, w): bicubic, without antialiasing."""
    side = math.isqrt(table.shape[1])
    if (side, side) == tuple(grid):
        return table
    grid_map = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, s * s, C) -> (1, C, s, s)
    grid_map = functional.interpolate(grid_map, size=grid, mode='bicubic', align_corners=False)
    return grid_map.flatten(2).transpose(1, 2)
