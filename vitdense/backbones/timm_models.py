"""timm Vision Transformers without heads and weights: supported families and checked arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import eva, is_model_in_modules, vision_transformer
from torch import nn

from vitdense.backbones.hub_names import check_name, plain_name
from vitdense.errors import ConfigError, did_you_mean

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
    for key in timm_args or {}:
        if key in _OURS:
            ours = _OURS[key]
            raise ConfigError(
                f"timm_args must not hold '{key}'",
                where='ViT(timm_args=...)',
                why='the backbone sets it itself',
                fix=f'use the argument {ours}= of ViT' if ours else f"remove '{key}'",
            )
    if (timm_args or {}).get('in_chans', 3) != 3:
        raise ConfigError(
            f'a ViT with {timm_args["in_chans"]} channels cannot read images',
            where='ViT(timm_args=dict(in_chans=...))',
            why='images are RGB everywhere: 3 channels; gray ones are repeated, transparency is left out',
            fix='remove in_chans',
        )
    negative = [key for key, value in (timm_args or {}).items() if isinstance(value, int) and value < 0]
    if negative:
        raise ConfigError(
            f'timm_args has {negative[0]}={timm_args[negative[0]]}',
            where='ViT(timm_args=...)',
            why='sizes and counts are not negative',
            fix=f"give {negative[0]} a whole number from 1 on, or leave it out for timm's own",
        )
    return dict(timm_args or {})


def check_img_size(img_size: tuple[int, int] | None, patch: int) -> None:
    if img_size and (img_size[0] % patch or img_size[1] % patch):
        raise ConfigError(
            f'img_size {img_size[0]} x {img_size[1]} is not a multiple of the patch size {patch}',
            where='ViT(img_size=..., patch_size=...)',
            why='the table of positions has one entry for each whole patch',
            fix=f'use {img_size[0] // patch * patch} x {img_size[1] // patch * patch}',
        )


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
