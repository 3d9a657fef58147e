"""Trained models of any form: a model folder, a checkpoint of a run, a head file beside its backbone, plain weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vitdense.checkpoints.descriptions import check_metadata, check_recipes, described_weights, read_description
from vitdense.checkpoints.head_files import BACKBONE, Head, check_backbone, fingerprint, read_head, weights_of
from vitdense.checkpoints.image_sizes import sizes_in
from vitdense.checkpoints.model_folder import (
    CONTENT,
    METAINFO,
    model_folder_of,
    read_model_folder,
    without_pretrained,
)
from vitdense.checkpoints.run import read_checkpoint
from vitdense.checkpoints.shard_folder import is_shard_folder
from vitdense.config.from_text import config_in, model_in, read_config_text
from vitdense.config.load import image_recipe
from vitdense.errors import CheckpointError, cause_of
from vitdense.storage.atomic import read_json
from vitdense.storage.weights import read_weights


class Trained(NamedTuple):
    """A trained model, as files describe it."""

    where: str
    recipe: dict[str, Any] | None  # None: the file holds weights only, and the config must describe all of the model
    state: Mapping[str, Tensor]
    omitted: Mapping[str, Any] | None
    metainfo: dict[str, Any]
    transforms: list[Any] | None  # recipes for evaluation
    value_range: Any = None  # of images with more than 8 bits
    config: Mapping[str, Any] = {}  # sections of the config of its run, where a checkpoint has it


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights at `path` and their metadata (`metainfo`, `step`, `averaged`, ...).

    `path` is a checkpoint of a run (the averaged weights are taken where there are any), a model folder, a head file
    whose backbone lies beside it, or a file of weights. Raises CheckpointError.
    """
    path = model_folder_of(path)
    if path.is_dir() and not is_shard_folder(path):
        info = read_description(path / 'model.json', CONTENT)
        weights = described_weights(path / 'model.json', info)
        metadata = {'metainfo': {key: info.get(key, {}) for key in METAINFO}, 'sizes': sizes_in(info['recipe'])}
        return read_weights(weights), metadata | {'operating_points': info.get('operating_points') or {}}
    if is_head_file(path):
        head = read_trained_head(path)
        return dict(head.state), {'metainfo': head.metainfo, 'sizes': sizes_in(head.recipe)}
    if path.suffix == '.safetensors' or not (path.is_file() or is_shard_folder(path)):
        return read_weights(path), {}
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        if 'checksum' in error.message or path.is_dir():
            raise
        return read_weights(path), {}  # weights of other programs; it refuses what is not safe
    metadata = {
        key: value
        for key, value in content.items()
        if key in ('metainfo', 'step', 'metrics', 'classes', 'omitted_weights', 'operating_points')
    }
    check_metadata(metadata, path)
    metadata['averaged'] = 'training_state_dict' in content or 'ema_updates' in content
    metadata['sizes'] = sizes_in(model_in(content))
    return content['state_dict'], metadata


def read_trained(path: str | Path, *, weights: bool = True) -> Trained:
    """Return the trained model at `path`: as `read_state`, or a work directory. Of a folder, `weights` may be left out.

    No code in the files is run: their types are looked up among the parts of vitdense. Raises CheckpointError.
    """
    path = model_folder_of(path)
    if is_head_file(path):
        return read_trained_head(path)
    folder = path.is_dir() and (path / 'model.json').is_file()
    state, info = ({}, {}) if folder and not weights else read_state(path)
    metainfo, value_range, config = info.get('metainfo') or {}, None, {}
    if path.is_dir() and not is_shard_folder(path):
        info = read_description(path / 'model.json', CONTENT)
        metainfo = {key: info.get(key, {}) for key in METAINFO}
        recipe, transforms, value_range = info['recipe'], list(info['transforms']), info.get('value_range')
    elif 'config' in (content := read_checkpoint(path) if info else {}):
        config = config_in(content)
        recipe, transforms = _recipes_in(content['config'], path)
    else:
        return Trained(str(path), None, state, None, metainfo, None)
    try:
        check_recipes([recipe, transforms], path / 'model.json' if path.is_dir() else path)
    except CheckpointError as error:
        fix = 'for parts of your own give a plain file of weights, and a config that describes the whole model'
        raise CheckpointError(error.message, where=error.where, why=error.why, fix=fix) from error
    omitted = info.get('omitted_weights')
    return Trained(str(path), recipe, state, omitted, metainfo, transforms, value_range, config)


def _recipes_in(text: Any, path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return the recipes of model and evaluation transforms in the config of a checkpoint; no part of them loads
    weights of its own. Raises CheckpointError.
    """
    try:
        content = read_config_text(text)
        recipe = without_pretrained(content['model'])
        transforms = without_pretrained(image_recipe(content)['transforms'])
        if not isinstance(recipe, dict) or not isinstance(recipe.get('network'), dict):
            raise ValueError('its model has no network')
    except Exception as error:  # text from anywhere
        raise CheckpointError(
            'the checkpoint does not describe its model',
            where=str(path),
            why=f'its config cannot be read: {cause_of(error)}',
            fix='give the folder model/ of the run, or a plain file of weights and a config of the whole model',
        ) from error
    return recipe, transforms


def is_head_file(path: str | Path) -> bool:
    """Whether `path` is the json file of a head (see `vitdense.checkpoints.head_files`)."""
    path = Path(path)
    if path.suffix != '.json' or path.name == 'model.json' or not path.is_file():
        return False
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and 'branch' in content


def read_trained_head(path: str | Path) -> Trained:
    """Return the model of a head file alone, on the backbone of the model folder that lies beside the file.

    That is the file's folder, the one above it, or a folder `model` in one of these. Raises CheckpointError where none
    has the backbone that the head was trained on.
    """
    path = Path(path)
    head = read_head(path, path.stem)
    folders = [each for above in (path.parent, path.parent.parent) for each in (above, above / 'model')]
    candidates = [folder for folder in folders if (folder / 'model.json').is_file()]
    if not candidates:
        raise CheckpointError(
            f"the backbone of the head '{head.name}' is not beside it",
            where=str(path),
            why=f'no model folder in {", ".join(map(str, folders))}',
            fix='put the head file into the folder of the model that it was trained on, or into heads/ beside it',
        )
    for folder in candidates:
        model, info = read_model_folder(folder)
        own = fingerprint(model, info['recipe'], model.state_dict())
        if len(candidates) == 1 or head.backbone == own:
            break
    check_backbone(head, own, where=f'{path}, {folder}')
    return _with_backbone(head, info, model.state_dict(), path)


def _with_backbone(head: Head, info: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> Trained:
    """Return the model of `head` on the backbone of the model with the description `info` and the weights `state`."""
    model = info['recipe']
    network = {**model['network'], 'branches': {head.name: head.branch}}
    recipe = {'type': model['type'], 'network': network, 'tasks': {head.name: head.task}, 'tiler': head.tiler}
    backbone = {name: value for name, value in state.items() if name.startswith(BACKBONE)}
    metainfo = {key: {head.field: value} for key, value in head.metainfo.items() if value is not None}
    weights = backbone | weights_of(head)
    return Trained(str(path), recipe, weights, None, metainfo, list(head.transforms), info.get('value_range'))
