"""Published checkpoints of the same architectures: whose names and shapes mean which of ours.

A `Published` says where checkpoints come from, under which licence, and how to translate them; `load_weights` with its
`convert` then refuses whatever is not covered to the last number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from vitdense.weights import Coverage, State, load_weights

Rule = tuple[str, str | Callable[[re.Match], str]]  # a regular expression for a part of a name, and what replaces it
POSITIONS = 'backbone.vit.model.pos_embed'


class Published(NamedTuple):
    """A family of published checkpoints."""

    name: str
    source: str  # where the files are
    licence: str  # of the weights
    rules: Sequence[Rule]  # applied one after another to every name


UPERNET = (  # mmsegmentation's UPerHead and FCNHead -> UPerNetHead of the branch 'sem'
    (r'^decode_head\.conv_seg\.', 'heads.sem.classifier.'),
    (r'^decode_head\.psp_modules\.(\d+)\.1\.', r'heads.sem.pooling.projections.\1.'),
    (r'^decode_head\.bottleneck\.', 'heads.sem.pooling.bottleneck.'),
    (r'^decode_head\.lateral_convs\.', 'heads.sem.laterals.'),
    (r'^decode_head\.fpn_convs\.', 'heads.sem.smooths.'),
    (r'^decode_head\.fpn_bottleneck\.', 'heads.sem.fuse.'),
    (r'^auxiliary_head\.convs\.0\.', 'heads.sem.aux.0.'),
    (r'^auxiliary_head\.conv_seg\.', 'heads.sem.aux.2.'),
    (r'^(heads\..*)\.bn\.', r'\1.norm.'),
)
VIT_ADAPTER = Published(
    'ViT-Adapter, UPerNet on DeiT or AugReg',
    source='https://github.com/czczup/ViT-Adapter (segmentation)',
    licence='Apache-2.0',
    rules=(
        (r'^backbone\.(patch_embed|pos_embed|blocks)\b', r'backbone.vit.model.\1'),
        (r'^(backbone\.vit\.model\.blocks\.\d+)\.gamma(\d)$', r'\1.ls\2.gamma'),
        (r'^backbone\.(level_embed$|up\.)', r'backbone.pyramid.\1'),
        (r'^backbone\.norm1\.', 'backbone.pyramid.norms.0.'),
        (r'^backbone\.norm2\.', 'backbone.pyramid.norms.1.'),
        (r'^backbone\.norm3\.', 'backbone.pyramid.norms.2.'),
        (r'^backbone\.norm4\.', 'backbone.pyramid.norms.3.'),
        *(
            (rf'^backbone\.spm\.fc{number}\.', f'backbone.pyramid.prior.project.{number - 1}.')
            for number in (1, 2, 3, 4)
        ),
        *(
            (rf'^backbone\.spm\.stem\.{3 * number + step}\.', f'backbone.pyramid.prior.stem.{number}.{part}.')
            for number in (0, 1, 2)
            for step, part in enumerate(('conv', 'norm'))
        ),
        *(
            (rf'^backbone\.spm\.conv{number}\.{step}\.', f'backbone.pyramid.prior.stages.{number - 2}.{part}.')
            for number in (2, 3, 4)
            for step, part in enumerate(('conv', 'norm'))
        ),
        (r'^backbone\.interactions\.(\d+)\.injector\.', r'backbone.injectors.\1.'),
        (r'^backbone\.interactions\.(\d+)\.extractor\.', r'backbone.pyramid.extractors.\1.0.'),
        (
            r'^backbone\.interactions\.(\d+)\.extra_extractors\.(\d+)\.',
            lambda found: f'backbone.pyramid.extractors.{found[1]}.{int(found[2]) + 1}.',
        ),
        (r'\.ffn\.dwconv\.dwconv\.', '.ffn.dwconv.'),
        *UPERNET,
    ),
)


def load_published(network: nn.Module, state: Mapping[str, Tensor], published: Published, *, where: str) -> Coverage:
    """Fill `network` with a published checkpoint `state`, completely or not at all, and return what matched.

    For `VIT_ADAPTER` the network is a `SharedNetwork` with a branch 'sem' of UPerNet on a `ViTAdapter`, whose ViT is
    made with `timm_args=dict(class_token=False, final_norm=False)`: theirs have neither. Their models resample the
    table of positions to each picture by a bicubic rule that differs from timm's; here the table is brought to the grid
    of the network's own table by their rule, so that with `img_size=512` windows of 512 get exactly their positions.

    Raises CheckpointError when anything is missing, left over or of another shape. `where` names the source.
    """
    grid = network.backbone.vit.grid

    def convert(trial: State) -> State:
        return translate(trial, published, grid)

    return load_weights(network, state, where=where, convert=convert)


def translate(state: Mapping[str, Tensor], published: Published, grid: tuple[int, int]) -> State:
    """Return a published `state` under our names, its table of positions (square, behind a class token) on `grid`."""
    ours = {rename(name, published.rules): value for name, value in state.items()}
    if POSITIONS in ours:
        ours[POSITIONS] = _resample(ours[POSITIONS][:, 1:], grid)
    return ours


def rename(name: str, rules: Sequence[Rule]) -> str:
    """Return `name` after all `rules`, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _resample(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return positions (1, s * s, C) of a square as those of `grid` (h, w): bicubic, without antialiasing."""
    side = math.isqrt(table.shape[1])
    if (side, side) == tuple(grid):
        return table
    plane = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, s * s, C) -> (1, C, s, s)
    plane = functional.interpolate(plane, size=grid, mode='bicubic', align_corners=False)
    return plane.flatten(2).transpose(1, 2)
