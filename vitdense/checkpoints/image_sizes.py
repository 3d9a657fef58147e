"""Patch size and image size of a ViT in model recipes.

A ViT takes them from its pretrained file; a checkpoint stores them, so that the ViT can be built without that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitdense.protocols import BackboneNetwork, SizedBackbone, WrappingBackbone

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
    backbone = model.network.backbone if isinstance(model.network, BackboneNetwork) else None
    vit = backbone.vit if isinstance(backbone, WrappingBackbone) else backbone
    return vit.decided if isinstance(vit, SizedBackbone) else {}


def with_sizes(recipe: Mapping[str, Any], sizes: Mapping[str, Any], *, override: bool = False) -> dict[str, Any]:
    """Return a model recipe whose ViT has `sizes` where it has none; with `override`, in any case."""
    vit = _vit(recipe)
    missing = {key: value for key, value in sizes.items() if vit and (override or vit.get(key) is None)}
    if not missing:
        return dict(recipe)
    network, inner = recipe['network'], {**vit, **missing}
    backbone = {**network['backbone'], 'vit': inner} if 'vit' in network['backbone'] else inner
    return {**recipe, 'network': {**network, 'backbone': backbone}}
