"""Inference of the grid of a position table: weight files hold the number of positions, not (h, w)."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from torch import Tensor, nn

from vitdense.arguments import check
from vitdense.errors import CheckpointError

logger = logging.getLogger('vitdense')

Grid = tuple[int, int]


class Sizes(NamedTuple):
    """Image sizes in the config, (H, W) in pixels; None where not set."""

    where: str  # the file
    img_size: Grid | None  # to whose grid the table is resampled
    pretrained_img_size: Grid | None  # of the images that the table in the file was trained on


def table_grid(
    model: nn.Module, table: Tensor | None, sizes: Sizes, *, patch: int, published: bool, strict: bool
) -> Grid:
    """Return the (h, w) of a file's `table` (1, N, C) of positions, for patches of `patch` pixels.

    It is the grid of `pretrained_img_size` if set, otherwise the first with as many positions of: `img_size`, the
    default grid of the model, a square; a guess is logged. The table of `published` weights has the default grid.

    Raises ConfigError when `pretrained_img_size` has another count of positions, and CheckpointError when
    the grid is undetermined; unless `strict`, the default grid is returned then.
    """
    default: Grid = tuple(model.patch_embed.grid_size)
    if table is None or table.ndim != 3 or model.pos_embed is None or table.shape[-1] != model.embed_dim:
        return default
    count = table.shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens)
    pretrained, wanted = (_cells(size, patch) for size in (sizes.pretrained_img_size, sizes.img_size))
    if pretrained is not None:
        size = sizes.pretrained_img_size
        why = f'such images have {pretrained[0]} x {pretrained[1]} patches of {patch}, and the table {count} positions'
        fix = f'give the size (H, W) that the weights were trained at{_examples(count, patch)}'
        holds = _fits(pretrained, count) and size == _pixels(pretrained, patch)
        check(holds, 'ViT.pretrained_img_size', size, why, fix)
        return pretrained
    if _fits(default, count) and (published or not _fits(wanted, count)):
        return default
    if _fits(wanted, count):
        if _fits(default, count) and default != wanted:
            logger.warning(
                '%s: the table of %d positions is read as %d x %d, from img_size; pretrained_img_size=%s reads it '
                'as the default %d x %d, and resamples it',
                *(sizes.where, count, *wanted, _pixels(default, patch), *default),
            )
        return wanted
    side = math.isqrt(max(count, 0))
    if side * side != count or not side:
        if strict:
            raise _unknown(count, sizes, patch)
        return default
    argument = 'img_size' if sizes.img_size is None else 'pretrained_img_size'
    logger.warning(
        '%s: the table of %d positions is read as a square, %d x %d; if it was trained on images of another shape, '
        'say so: %s=(H, W) in pixels',
        *(sizes.where, count, side, side, argument),
    )
    return side, side


def _cells(size: Grid | None, patch: int) -> Grid | None:
    return None if size is None else (size[0] // patch, size[1] // patch)


def _fits(grid: Grid | None, count: int) -> bool:
    return grid is not None and grid[0] * grid[1] == count


def _pixels(grid: Grid, patch: int) -> Grid:
    return grid[0] * patch, grid[1] * patch


def _unknown(count: int, sizes: Sizes, patch: int) -> CheckpointError:
    if sizes.img_size is None:
        fix = 'say the size of the images that it was trained on: img_size=(H, W)'
    else:
        fix = f'keep img_size={sizes.img_size} and say the size it was trained at as well: pretrained_img_size=(H, W)'
    return CheckpointError(
        f'the table of {count} positions is not square, and nothing says how many rows it has',
        where=f'{sizes.where}, pos_embed',
        why='a weight file holds the positions in a row: their grid is that of the images they were trained on',
        fix=fix + _examples(count, patch),
    )


def _examples(count: int, patch: int) -> str:
    """Return the sizes whose grids have `count` positions, the nearest to a square first."""
    heights = [height for height in range(math.isqrt(max(count, 0)), 1, -1) if count % height == 0]
    pairs = [f'({height * patch}, {count // height * patch})' for height in heights[:3]]
    return f'; it may be {", ".join(pairs)}, or the reverse' if pairs else ''
