"""timm Vision Transformers as backbones: made without their heads, filled with weights, brought to the wanted grid."""

from __future__ import annotations

import contextlib
import io
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from timm.models import eva, get_pretrained_cfg, is_model_in_modules, load_pretrained, vision_transformer
from torch import Tensor, nn

from vitdense.errors import CheckpointError, ConfigError, did_you_mean
from vitdense.types import Classifier
from vitdense.weights import State, load_weights, open_checkpoint, read_weights

logger = logging.getLogger('vitdense')

FAMILIES = (vision_transformer.VisionTransformer, eva.Eva)
_MODULES = ('vision_transformer', 'deit', 'eva')  # where timm keeps them
_HUB_FILE = 'model.safetensors'
_ANCHOR = 'patch_embed.proj.weight'  # every ViT has it

# Names that belong to what a backbone does not have: classifiers, poolers, the decoder and mask of pre-training, and
# the fixed rotation tables that timm computes itself.
DISPENSABLE = ('head', 'fc_norm.', 'attn_pool.', 'pre_logits.', 'mask_token', 'decoder_', 'local_cls_norm.', 'rope.')
_POOLS = {'token': 'token', 'avg': 'average', 'map': 'attention'}  # timm's words and ours
_CLASSIFIER = {'head.': 'classifier.', 'fc_norm.': 'norm.', 'attn_pool.': 'attn_pool.'}  # timm's names and ClassHead's
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


def create(
    name: str,
    *,
    pretrained: bool | str | Path,
    partial_weights: bool | Sequence[str],
    patch_size: int | None,
    img_size: tuple[int, int] | None,
    drop_path: float,
    timm_args: Mapping[str, Any] | None,
) -> nn.Module:
    """Return the timm model `name` without its head, on the wanted patch size and table of positions.

    With weights, the model first takes the shape of the file (its patch size, its table of positions), is filled
    strictly, and is then resampled once to what is wanted. A new patch size alone keeps the table of the file: a 37 x
    37 table stays 37 x 37. See `ViT` for the arguments.

    Raises ConfigError for a name or an argument that timm does not have, CheckpointError for weights that do not fit
    or cannot be had.
    """
    arguments = {**_checked(timm_args), 'drop_path_rate': drop_path}
    if not pretrained:
        wanted = {'patch_size': patch_size, 'img_size': img_size}
        model = _make(name, arguments | {key: value for key, value in wanted.items() if value is not None})
        _check_img_size(img_size, model.patch_embed.patch_size[0])
        return model
    model = _make(name, arguments)
    _check_img_size(img_size, patch_size or model.patch_embed.patch_size[0])
    state, where = _fetch(name, model) if pretrained is True else (read_weights(pretrained), str(pretrained))
    if state:
        state = _without_class_token(state, model)
        _take_shape(model, state, img_size)
        convert = partial(timm_names, model=model, name=name)
        load_weights(
            model, state, where=f'{where}, backbone', partial=partial_weights, convert=convert, ignore=DISPENSABLE
        )
    _resample(model, patch_size, img_size)
    return model


def read_classifier(
    name: str, *, pretrained: bool | str | Path, timm_args: Mapping[str, Any] | None = None
) -> Classifier:
    """Return the classifier that the weights of `name` bring, as timm would use it.

    Raises ConfigError without weights, or when timm's classifier does what ours cannot (a distillation token, poolings
    other than class token, average and attention); CheckpointError when the weights have none.
    """
    if not pretrained:
        raise ConfigError(
            'the head asks for the classifier of a checkpoint, but the backbone has none',
            where='ViT(pretrained=False)',
            why='the classifier comes with the pretrained weights',
            fix='set pretrained=True or a path in the backbone, or pretrained=False in the head',
        )
    with torch.device('meta'):  # to know its parts; no weights are made
        model = timm.create_model(name, **_checked(timm_args))
    state, where = _fetch(name, model) if pretrained is True else (read_weights(pretrained), str(pretrained))
    prefix = (_anchor(state) or _ANCHOR).removesuffix(_ANCHOR)
    weights = {
        ours + key.removeprefix(prefix + theirs): value
        for theirs, ours in _CLASSIFIER.items()
        for key, value in state.items()
        if key.startswith(prefix + theirs)
    }
    if 'classifier.weight' not in weights:
        tagged = [tag for tag in timm.list_pretrained(f'{name.partition(".")[0]}*') if '_in1k' in tag]
        raise CheckpointError(
            f"the weights of '{name}' bring no classifier",
            where=where,
            why=f'there is no {prefix}head.weight',
            fix=f'set pretrained=False in the head, or take a classifier, such as {", ".join(tagged[:4]) or "deit3_*"}',
        )
    pool = _POOLS.get(model.global_pool)
    if pool is None or prefix + 'head_dist.weight' in state or getattr(model, 'pool_include_prefix', False):
        raise ConfigError(
            f"the classifier of '{name}' cannot be taken over",
            where=where,
            why=f"it pools by '{model.global_pool}', over a distillation token or over registers",
            fix='set pretrained=False in the head and train a classifier',
        )
    return Classifier(pool, not isinstance(model.norm, nn.Identity), weights, where)


def _checked(timm_args: Mapping[str, Any] | None) -> dict[str, Any]:
    for key in timm_args or {}:
        if key in _OURS:
            ours = _OURS[key]
            raise ConfigError(
                f"timm_args must not hold '{key}'",
                where='ViT(timm_args=...)',
                why='the backbone sets it itself',
                fix=f'use the argument {ours}= of ViT' if ours else f"remove '{key}'",
            )
    return dict(timm_args or {})


def _check_img_size(img_size: tuple[int, int] | None, patch: int) -> None:
    if img_size and (img_size[0] % patch or img_size[1] % patch):
        raise ConfigError(
            f'img_size {img_size[0]} x {img_size[1]} is not a multiple of the patch size {patch}',
            where='ViT(img_size=..., patch_size=...)',
            why='the table of positions has one entry for each whole patch',
            fix=f'use {img_size[0] // patch * patch} x {img_size[1] // patch * patch}',
        )


def _make(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Make the model with random weights. The final norm is always the norm of tokens, never that of a pooled one."""
    architecture = name.partition('.')[0]
    if not timm.is_model(architecture):
        raise ConfigError(
            f"timm has no model '{architecture}'{did_you_mean(architecture, timm.list_models())}",
            where='ViT(name=...)',
            why=f'timm {timm.__version__} does not know this name',
            fix="take a name of timm.list_models('vit_*'), such as 'vit_small_patch14_dinov2'",
        )
    if not is_model_in_modules(architecture, _MODULES):
        _refuse_kind(f"'{name}' is not a plain Vision Transformer")
    # timm moves the final norm behind the pooling for pooled models; an empty pooling keeps it on the tokens. Models
    # with a distillation token know one pooling only, which does not move the norm.
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


def _fetch(name: str, model: nn.Module) -> tuple[State, str]:
    """Return the published weights of `name` from the cache or the hub, and where they came from."""
    cfg = get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        architecture = name.partition('.')[0]
        raise CheckpointError(
            f"timm has no published weights for '{name}'",
            where='ViT(pretrained=True)',
            why=f'weights exist for: {", ".join(timm.list_pretrained(architecture + "*")[:8]) or "no variant"}',
            fix="take one of these names, or give the path of a file: pretrained='path/model.safetensors'",
        )
    file = _HUB_FILE if cfg.hf_hub_id else Path(cfg.url).name
    address = f'{ENDPOINT}/{cfg.hf_hub_id}/resolve/main/{file}' if cfg.hf_hub_id else cfg.url
    cached = try_to_load_from_cache(cfg.hf_hub_id, file) if cfg.hf_hub_id else None
    if isinstance(cached, str):
        return read_weights(cached), cfg.hf_hub_id
    found: list[State] = []

    def keep(state: State, _: nn.Module) -> State:
        found.append(state)
        return {}  # timm then loads nothing: we load strictly, and count

    try:
        _reach(address)
        load_pretrained(model, pretrained_cfg=cfg.to_dict(), num_classes=0, filter_fn=keep, strict=False)
    except Exception as error:  # any of a dozen kinds from sockets, hubs and caches; each means: not there
        raise CheckpointError(
            f"could not get the weights of '{name}'",
            where=f'{file} of {cfg.hf_hub_id or cfg.url}',
            why=f'{type(error).__name__}: {(str(error).strip().splitlines() or ["no network"])[0][:160]}',
            fix=f"with a network, download {address}\nand give its path: pretrained='path/{file}'",
        ) from None
    return (open_checkpoint(found[0]) if found else {}), cfg.hf_hub_id or cfg.url


def _reach(address: str) -> None:
    """Fail at once where there is no network: the hub's own client tries for most of a minute, and complains each
    time.
    """
    request = urllib.request.Request(address, method='HEAD')
    with contextlib.suppress(urllib.error.HTTPError):  # somebody answered: what it means is for the client to say
        urllib.request.urlopen(request, timeout=10).close()


def _take_shape(model: nn.Module, state: State, img_size: tuple[int, int] | None) -> None:
    """Bring the still random model to the patch size and the table of positions of the file, so that nothing is
    resampled twice.
    """
    name = _anchor(state)
    if name is None or state[name].ndim != 4 or state[name].shape[-1] != state[name].shape[-2]:
        return
    patch = state[name].shape[-1]
    grid = _table_grid(model, state.get(name.removesuffix(_ANCHOR) + 'pos_embed'), img_size, patch)
    model.set_input_size(img_size=(grid[0] * patch, grid[1] * patch), patch_size=patch)


def _without_class_token(state: State, model: nn.Module) -> State:
    """Return `state` for a model that was told to have no class token (`timm_args=dict(class_token=False)`): without
    the token and its position.
    """
    prefix = (_anchor(state) or _ANCHOR).removesuffix(_ANCHOR)
    if model.cls_token is not None or f'{prefix}cls_token' not in state:
        return state
    state = {name: value for name, value in state.items() if name != f'{prefix}cls_token'}
    table = state.get(f'{prefix}pos_embed')
    if table is not None and not model.no_embed_class:
        state[f'{prefix}pos_embed'] = table[:, 1:]
    logger.info('the class token of the weights is left out, as asked')
    return state


def _anchor(state: State) -> str | None:
    """Return the name of the patch kernel in a file, whatever stands before it."""
    return min((name for name in state if name == _ANCHOR or name.endswith('.' + _ANCHOR)), key=len, default=None)


def _table_grid(
    model: nn.Module, table: Tensor | None, img_size: tuple[int, int] | None, patch: int
) -> tuple[int, int]:
    """Return the (h, w) of the table of positions in a file: the usual one, the wanted one, or a square one."""
    usual = tuple(model.patch_embed.grid_size)
    if table is None or table.ndim != 3:
        return usual
    count = table.shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens)
    side = round(max(count, 0) ** 0.5)
    wanted = (img_size[0] // patch, img_size[1] // patch) if img_size else usual
    return next((grid for grid in (usual, wanted, (side, side)) if grid[0] * grid[1] == count), usual)


def timm_names(state: State, *, model: nn.Module, name: str = '') -> State:
    """Translate the names of other publishers with timm's own filter; a norm that timm keeps behind the pooling becomes
    the final norm.
    """
    if isinstance(model, eva.Eva):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each bias that a model does not have
            state = eva.checkpoint_filter_fn(dict(state), model)
    else:
        # RADIO's own files hold a 128 x 128 table that is resampled here, the way its authors do
        radio = {'interpolation': 'bilinear', 'antialias': False} if 'radio' in name else {}
        state = vision_transformer.checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True, **radio)
    if 'norm.weight' not in state:
        state = {
            f'norm.{key.removeprefix("fc_norm.")}' if key.startswith('fc_norm.') else key: value
            for key, value in state.items()
        }
    return state


def _resample(model: nn.Module, patch_size: int | None, img_size: tuple[int, int] | None) -> None:
    """Resample patch kernel and table of positions to what is wanted, and say so."""
    old_patch, old_grid = model.patch_embed.patch_size[0], tuple(model.patch_embed.grid_size)
    patch = patch_size or old_patch
    model.set_input_size(img_size=img_size or (old_grid[0] * patch, old_grid[1] * patch), patch_size=patch)
    grid = tuple(model.patch_embed.grid_size)
    if patch != old_patch:
        logger.info('patch kernel resampled from %d x %d to %d x %d', old_patch, old_patch, patch, patch)
    if grid != old_grid and model.pos_embed is not None:
        logger.info('table of positions resampled from %d x %d to %d x %d', *old_grid, *grid)
