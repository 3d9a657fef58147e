"""Patch size and image size of a ViT in model recipes.

A ViT takes them from its pretrained file; a checkpoint stores them, so that the ViT can be built without that file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from vitdense.backbones.vit import ViT
from vitdense.protocols import BackboneNetwork, SizedBackbone, WrappingBackbone

logger = logging.getLogger('vitdense')
SIZES = ('patch_size', 'img_size')  # arguments of a ViT


def _vit(recipe: Any) -> Mapping[str, Any]:
    """Return the recipe of the ViT in a model recipe; an empty one where there is none."""
    network = recipe.get('network') if isinstance(recipe, Mapping) else None
    backbone = network.get('backbone') if isinstance(network, Mapping) else None
    inner = backbone.get('vit', backbone) if isinstance(backbone, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def sizes_in(recipe: Any) -> dict[str, Any]:
    """Return the patch size and image size that a model recipe gives its ViT."""
    return {key: _vit(recipe)[key] for key in SIZES if _vit(recipe).get(key) is not None}


def pretrained_sizes(model: nn.Module) -> dict[str, Any]:
    """Return the sizes that come from the pretrained file of a model, as arguments of its ViT."""
    vit = _vit_of(model)[1]
    return vit.decided if isinstance(vit, SizedBackbone) else {}


def _vit_of(model: nn.Module) -> tuple[str, nn.Module | None]:
    """Return the ViT of a model, with its name in it."""
    backbone = model.network.backbone if isinstance(model.network, BackboneNetwork) else None
    wrapped = isinstance(backbone, WrappingBackbone)
    return ('network.backbone.vit', backbone.vit) if wrapped else ('network.backbone', backbone)


def resample_sizes(model: nn.Module, state: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return `state`, weights of a model whose ViT has `sizes`, with the patch kernel and positions of `model`.

    They are resampled as a pretrained file is (`vitdense.pretrained.creation`), and logged. What cannot be resampled
    stays as it is.
    """
    name, vit = _vit_of(model)
    result = dict(state)
    if not isinstance(vit, ViT):
        return result
    own, resampled = vit.model, {}
    names = {each: f'{name}.model.{each}' for each in ('patch_embed.proj.weight', 'pos_embed')}
    kernel, table = (state.get(each) for each in names.values())
    patch, new = (own.patch_embed.patch_size[0],) * 2
    if kernel is not None and kernel.ndim == 4 and vit.stem == 'patch':
        patch = kernel.shape[-1]
        if patch != new:
            logger.info('patch kernel resampled from %d x %d to %d x %d', patch, patch, new, new)
            resampled['patch_embed.proj.weight'] = resample_patch_embed(kernel, [new, new])
    if table is not None and own.pos_embed is not None and table.ndim == 3:
        prefix = 0 if own.no_embed_class else own.num_prefix_tokens
        grid, wanted = tuple(own.patch_embed.grid_size), table.shape[1] - prefix
        old = _grid(wanted, sizes.get('img_size'), patch, grid)
        if old is not None and old != grid:
            logger.info('table of positions resampled from %d x %d to %d x %d', *old, *grid)
            options = dict(new_size=list(grid), old_size=list(old), num_prefix_tokens=prefix)
            resampled['pos_embed'] = resample_abs_pos_embed(table, **options)
    return result | {names[each]: value for each, value in resampled.items()}


def _grid(count: int, img_size: Any, patch: int, own: tuple[int, int]) -> tuple[int, int] | None:
    """Return the (h, w) of a table of `count` positions: of images of `img_size`, else that of the model, a square."""
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    root = math.isqrt(max(count, 0))
    grids = [tuple(side // patch for side in sides)] if sides else []
    return next((grid for grid in (*grids, own, (root, root)) if grid[0] * grid[1] == count and count), None)


def with_sizes(recipe: Mapping[str, Any], sizes: Mapping[str, Any], *, override: bool = False) -> dict[str, Any]:
    """Return a model recipe whose ViT has `sizes` where it has none; with `override`, in any case."""
    vit = _vit(recipe)
    missing = {key: value for key, value in sizes.items() if vit and (override or vit.get(key) is None)}
    if not missing:
        return dict(recipe)
    network, inner = recipe['network'], {**vit, **missing}
    backbone = {**network['backbone'], 'vit': inner} if 'vit' in network['backbone'] else inner
    return {**recipe, 'network': {**network, 'backbone': backbone}}
