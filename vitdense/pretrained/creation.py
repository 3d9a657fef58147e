"""Creation of timm Vision Transformers with pretrained weights, at the requested patch size and grid."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from timm.models import eva, get_pretrained_cfg, load_pretrained, vision_transformer
from torch import Tensor, nn

from vitdense.arguments import check
from vitdense.errors import CheckpointError, cause_of
from vitdense.pretrained.foreign_names import translated
from vitdense.pretrained.hub_names import plain_name
from vitdense.pretrained.position_tables import Sizes, table_grid
from vitdense.pretrained.timm_models import check_img_size, check_timm_args, make_model
from vitdense.storage.download import reach
from vitdense.storage.weight_sets import find_set, to_float32
from vitdense.storage.weights import State, load_weights, read_weights
from vitdense.types import Classifier

logger = logging.getLogger('vitdense')

_HUB_FILE = 'model.safetensors'
_ANCHOR = 'patch_embed.proj.weight'  # every ViT has it

# Weights that a backbone does not use: classifiers, poolers, decoder and mask token of pretraining, and the fixed
# rotary tables, which timm computes.
DISPENSABLE = (
    *('head', 'fc_norm.', 'attn_pool.', 'pooler.', 'pre_logits.', 'mask_token', 'decoder_', 'local_cls_norm.'),
    *('rope.', 'rope_embeddings.'),
)
_POOLS = {'token': 'token', 'avg': 'average', 'map': 'attention'}  # timm's name -> ours
_CLASSIFIER = {
    'head.': 'classifier.',
    'fc_norm.': 'norm.',
    'attn_pool.': 'attn_pool.',
}  # timm's prefix -> that of ClassHead
_ZERO = 1e-4  # biases up to this count as zero
_FIX = (
    'load them into the model they were made for; a backbone that may take a part of its pretrained weights\n'
    'says so with partial_weights=True'
)


class Created(NamedTuple):
    """A timm model and the sizes that its weights decided."""

    model: nn.Module
    decided: dict[str, Any]  # patch_size and img_size needed to build the same ViT without the weights


def create(
    name: str,
    *,
    pretrained: bool | str | Path,
    partial_weights: bool | Sequence[str],
    patch_size: int | None,
    img_size: int | tuple[int, int] | None,
    pretrained_img_size: int | tuple[int, int] | None,
    drop_path: float,
    timm_args: Mapping[str, Any] | None,
) -> Created:
    """Return the timm model `name` without its head, at the requested patch size and position grid.

    With weights, the model is first built with the patch size and the position table of the file, loaded strictly, and
    then resampled once to the requested sizes. A new patch size alone keeps the table of the file: a 37 x
    37 table stays 37 x 37. See `ViT` for the arguments.

    Raises ConfigError for a name or an argument that timm does not have, CheckpointError for weights that do not fit
    or cannot be had.
    """
    img_size, pretrained_img_size = _pair(img_size), _pair(pretrained_img_size)
    arguments = {**check_timm_args(timm_args), 'drop_path_rate': drop_path}
    wanted = {'patch_size': patch_size, 'img_size': img_size}
    if not pretrained:
        model = make_model(name, arguments | {key: value for key, value in wanted.items() if value is not None})
        check_img_size(img_size, model.patch_embed.patch_size[0])
        return Created(model, {})
    model = make_model(name, arguments)
    patch, pixels = model.patch_embed.patch_size[0], model.patch_embed.img_size
    check_img_size(img_size, patch_size or patch)
    state, where = _read(name, model, pretrained)
    if state:
        state = _without_class_token(state, model)
        sizes = Sizes(where, img_size, pretrained_img_size)
        _take_shape(model, state, sizes, published=pretrained is True, strict=partial_weights is not True)
        convert = partial(timm_names, model=model, name=name)
        names = dict(partial=partial_weights, convert=convert, ignore=DISPENSABLE)
        load_weights(model, state, where=where, fix=_FIX, **names)
    _resample(model, patch_size, img_size)
    requested = (patch_size or patch, tuple(side // (patch_size or patch) for side in img_size or pixels))
    actual = (model.patch_embed.patch_size[0], tuple(model.patch_embed.grid_size))
    decided = dict(patch_size=actual[0], img_size=tuple(side * actual[0] for side in actual[1]))
    return Created(model, decided if requested != actual else {})


def _pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else None if size is None else tuple(size)


def _read(name: str, model: nn.Module, pretrained: bool | str | Path) -> tuple[State, str]:
    """Return the weights of `name` under names that timm reads, and where they come from: from the hub (`pretrained`
    True) or a file.
    """
    if pretrained is True:
        state, where = _fetch(name, model)
    else:
        state, where = read_weights(pretrained), str(pretrained)
    state, kind = translated(state, where=where)
    if kind.endswith('SigLIP') and getattr(model.blocks[0].mlp.act, 'approximate', '') == 'none':
        logger.warning(
            'transformers approximates the GELU of SigLIP by tanh and %s does not: outputs differ by about 1e-3 unless '
            "timm_args=dict(act_layer='gelu_tanh')",
            name,
        )
    return state, ', '.join(filter(None, [where, 'backbone', kind]))


def read_classifier(
    name: str, *, pretrained: bool | str | Path, timm_args: Mapping[str, Any] | None = None
) -> Classifier:
    """Return the classifier in the weights of `name`, with its pooling and norm as in timm.

    Raises ConfigError without weights, or when timm's classifier does what ours cannot (a distillation token, poolings
    other than class token, average and attention); CheckpointError when the weights have none.
    """
    why = 'a head asks for the classifier of the checkpoint, which comes with the pretrained weights'
    fix = 'set pretrained=True or a path in the backbone, or pretrained=False in the head'
    check(bool(pretrained), 'ViT.pretrained', pretrained, why, fix)
    with torch.device('meta'):  # only the structure; no weights are allocated
        model = timm.create_model(plain_name(name), **check_timm_args(timm_args))
    state, where = _read(name, model, pretrained)
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
    plain = prefix + 'head_dist.weight' not in state and not getattr(model, 'pool_include_prefix', False)
    why = f"the classifier pools by '{model.global_pool}', over a distillation token or over registers"
    check(pool is not None and plain, where, name, why, 'set pretrained=False in the head and train a classifier')
    return Classifier(pool, not isinstance(model.norm, nn.Identity), weights, where)


def _fetch(name: str, model: nn.Module) -> tuple[State, str]:
    """Return the published weights of `name` from the cache or the hub, and where they came from."""
    name = plain_name(name)
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
    states: list[State] = []

    def keep(state: State, _: nn.Module) -> State:
        states.append(state)
        return {}  # timm then loads nothing: weights are loaded strictly later

    try:
        reach(address)
        load_pretrained(model, pretrained_cfg=cfg.to_dict(), num_classes=0, filter_fn=keep, strict=False)
    except Exception as error:  # sockets, hubs and caches raise many types
        raise CheckpointError(
            f"could not get the weights of '{name}'",
            where=f'{file} of {cfg.hf_hub_id or cfg.url}',
            why=cause_of(error),
            fix=f'with a network, download {address}\nand give its path: model.network.backbone.pretrained=path/{file} '
            '(vitdense finetune: --backbone-weights)',
        ) from None
    return (to_float32(find_set(states[0])) if states else {}), cfg.hf_hub_id or cfg.url


def _take_shape(model: nn.Module, state: State, sizes: Sizes, *, published: bool, strict: bool) -> None:
    """Give the uninitialised model the patch size and the position grid of the file, so that nothing is resampled
    twice.
    """
    anchor = _anchor(state)
    if anchor is None or state[anchor].ndim != 4:
        return
    kernel, prefix = state[anchor], anchor.removesuffix(_ANCHOR)
    _check_kernel(kernel, model.patch_embed.proj.weight)
    patch, table = kernel.shape[-1], state.get(f'{prefix}pos_embed')
    registers = f'{prefix}register_tokens' in state  # names of DINOv2, whose table has a position of the class token
    if registers and table is not None and model.no_embed_class:
        table = table[:, 1:]
    has = {token: f'{prefix}{token}' in state for token in ('cls_token', 'dist_token', 'reg_token')}
    has['reg_token'] |= registers
    alike = all(present == (getattr(model, token, None) is not None) for token, present in has.items())
    grid = table_grid(model, table, sizes, patch=patch, published=published, strict=strict and alike)
    model.set_input_size(img_size=(grid[0] * patch, grid[1] * patch), patch_size=patch)


def _check_kernel(kernel: Tensor, ours: Tensor) -> None:
    """Raise CheckpointError for a patch kernel (C, channels, P, P) that cannot read RGB images in square patches."""
    _, channels, height, width = kernel.shape
    if channels != ours.shape[1]:
        raise CheckpointError(
            f'the weights read images of {channels} channel{"s" * (channels > 1)}, the model those of {ours.shape[1]}',
            where=f'{_ANCHOR}: file {tuple(kernel.shape)}, model {tuple(ours.shape)}',
            why='images are RGB here; a kernel for another number of channels means other inputs',
            fix='take weights for RGB, or convert the kernel once with timm.models.adapt_input_conv(3, kernel)',
        )
    if height != width:
        raise CheckpointError(
            f'the weights cut images into patches of {height} x {width} pixels',
            where=f'{_ANCHOR}: file {tuple(kernel.shape)}',
            why='patches are square here: a map has one stride',
            fix='take weights with square patches',
        )


def _without_class_token(state: State, model: nn.Module) -> State:
    """Return `state` without class token and its position, for a model without one
    (`timm_args=dict(class_token=False)`).
    """
    prefix = (_anchor(state) or _ANCHOR).removesuffix(_ANCHOR)
    if model.cls_token is not None or f'{prefix}cls_token' not in state:
        return state
    state = {name: value for name, value in state.items() if name != f'{prefix}cls_token'}
    table = state.get(f'{prefix}pos_embed')
    if table is not None and not model.no_embed_class:
        state[f'{prefix}pos_embed'] = table[:, 1:]
    logger.info('the class token of the weights is omitted: the model has none')
    return state


def _anchor(state: State) -> str | None:
    """Return the name of the patch kernel in a file, with its prefix."""
    return min((name for name in state if name == _ANCHOR or name.endswith('.' + _ANCHOR)), key=len, default=None)


def timm_names(state: State, *, model: nn.Module, name: str = '') -> State:
    """Translate the names of other publishers with timm's own filter; a norm that timm keeps behind the pooling becomes
    the final norm.
    """
    cfg = model.pretrained_cfg  # from which the filter would guess the grid of a table; the real one is set here
    model.pretrained_cfg = {**cfg, 'input_size': (3, *model.patch_embed.img_size)}
    try:
        if isinstance(model, eva.Eva):
            _check_biases(state, model)
            with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each bias that a model does not have
                state = eva.checkpoint_filter_fn(dict(state), model)
        else:
            # RADIO's own files hold a 128 x 128 table that is resampled here, the way its authors do
            radio = {'interpolation': 'bilinear', 'antialias': False} if 'radio' in name else {}
            state = vision_transformer.checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True, **radio)
    finally:
        model.pretrained_cfg = cfg
    if 'norm.weight' not in state:
        state = {
            f'norm.{key.removeprefix("fc_norm.")}' if key.startswith('fc_norm.') else key: value
            for key, value in state.items()
        }
    return state


def _check_biases(state: State, model: nn.Module) -> None:
    """Raise CheckpointError when timm would leave out biases of DINOv3 that are not zero."""
    if 'storage_tokens' not in state or getattr(model.blocks[0].attn, 'q_bias', None) is not None:
        return
    for key, value in state.items():
        query, _, shift = value.chunk(3) if key.endswith('qkv.bias') else (value.new_zeros(1),) * 3
        if max(query.abs().max(), shift.abs().max()) > _ZERO:
            architecture = model.pretrained_cfg['architecture']
            raise CheckpointError(
                f"the weights have biases of queries and values, which '{architecture}' does not have",
                where=key,
                why='DINOv3 was published with biases that are zero; these are not',
                fix=f"write name='{architecture}_qkvb'",
            )


def _resample(model: nn.Module, patch_size: int | None, img_size: tuple[int, int] | None) -> None:
    """Resample patch kernel and position table to the requested sizes; log both."""
    old_patch, old_grid = model.patch_embed.patch_size[0], tuple(model.patch_embed.grid_size)
    patch = patch_size or old_patch
    model.set_input_size(img_size=img_size or (old_grid[0] * patch, old_grid[1] * patch), patch_size=patch)
    grid = tuple(model.patch_embed.grid_size)
    if patch != old_patch:
        logger.info('patch kernel resampled from %d x %d to %d x %d', old_patch, old_patch, patch, patch)
    if grid != old_grid and model.pos_embed is not None:
        logger.info('table of positions resampled from %d x %d to %d x %d', *old_grid, *grid)
