"""timm Vision Transformers without heads and weights: supported families and checked arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import eva, is_model_in_modules, vision_transformer
from torch import nn

from vitdense.arguments import check
from vitdense.errors import ConfigError, did_you_mean
from vitdense.pretrained.hub_names import check_name, plain_name

FAMILIES = (vision_transformer.VisionTransformer, eva.Eva)
MODULES = ('vision_transformer', 'deit', 'eva')  # of timm, which define them
_OURS = {
    'pretrained': 'pretrained',
    'num_classes': None,
    'global_pool': None,
    'dynamic_img_size': None,
    'drop_path_rate': 'drop_path',
    'patch_size': 'patch_size',
    'img_size': 'img_size',
    'patch_drop_rate': None,
    'features_only': None,
    'checkpoint_path': 'pretrained',
}


def check_timm_args(timm_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments that go to timm. Raises ConfigError."""
    for key, value in (timm_args or {}).items():
        where, ours = f'ViT.timm_args.{key}', _OURS.get(key)
        fix = f'use the argument {ours}= of ViT' if ours else f"remove '{key}'"
        check(key not in _OURS, where, value, 'the backbone sets it itself', fix)
        why = 'images are RGB everywhere: 3 channels; gray ones are repeated, transparency is left out'
        check(key != 'in_chans' or value == 3, where, value, why, 'remove in_chans')
        fix = "give a whole number from 1 on, or leave it out for timm's own"
        check(not isinstance(value, int) or value >= 0, where, value, 'sizes and counts are not negative', fix)
    return dict(timm_args or {})


def check_img_size(img_size: tuple[int, int] | None, patch: int) -> None:
    """Raise ConfigError for an image size that is no multiple of the patch size."""
    if img_size is not None:
        why = f'it is no multiple of the patch size {patch}: the table of positions has an entry for each whole patch'
        whole = (img_size[0] // patch * patch, img_size[1] // patch * patch)
        check(tuple(img_size) == whole, 'ViT.img_size', img_size, why, f'use {whole[0]} x {whole[1]}')


def make_model(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return the model with random weights. The final norm is always that of the tokens, never of a pooled token."""
    name = plain_name(name)
    architecture = name.partition('.')[0]
    if not timm.is_model(architecture):
        check_name(name)
        known = [each for module in MODULES for each in timm.list_models(module=module)]
        raise ConfigError(
            f"timm has no model '{architecture}'{did_you_mean(architecture, known)}",
            where='ViT(name=...)',
            why=f'timm {timm.__version__} does not know this name',
            fix="take a name of timm.list_models('vit_*'), such as 'vit_small_patch14_dinov2'",
        )
    if not is_model_in_modules(architecture, MODULES):
        _refuse_kind(f"'{name}' is not a plain Vision Transformer")
    # timm moves the final norm behind the pooling for pooled models; an empty pooling keeps it on the tokens. Models
    # with a distillation token have one pooling only, which does not move the norm.
    pooling = {} if 'distilled' in architecture else {'global_pool': ''}
    try:
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **pooling, **arguments)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"timm cannot make '{name}'",
            where='ViT(name=..., timm_args=...)',
            why=str(error),
            fix=f"check timm_args and the tag after the dot: timm.list_pretrained('{architecture}*') names the tags",
        ) from error
    height, width = model.patch_embed.patch_size
    if not isinstance(model, FAMILIES) or height != width:
        _refuse_kind(f"'{name}' is a {type(model).__name__} with patches of {height} x {width} pixels")
    return model


def _refuse_kind(message: str) -> None:
    raise ConfigError(
        message,
        where='ViT(name=...)',
        why='dense prediction needs the parts of the families VisionTransformer and Eva of timm, with square patches',
        fix="take a plain ViT, such as 'vit_small_patch14_dinov2' or 'vit_small_patch16_dinov3'",
    )
