"""Merging of heads trained on the same backbone into one model folder, and splitting of a model into head files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdense.arguments import check
from vitdense.checkpoints.head_files import (
    check_backbone,
    extract_head,
    fingerprint,
    read_head,
    save_head,
    weights_of,
)
from vitdense.checkpoints.limits import limit_tensors
from vitdense.checkpoints.model_folder import METAINFO, read_model_folder, save_model_folder
from vitdense.config.run_config import same
from vitdense.errors import ConfigError
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.storage.weights import load_weights

logger = logging.getLogger('vitdense')
INFERENCE_KEYS = ('type', 'network', 'tasks', 'tiler', 'tta')  # keys of a model recipe that affect predictions


def merge_heads(base: str | Path, heads: Mapping[str, str | Path], out: str | Path) -> DenseModel:
    """Write the model folder `out`: that of `base` with `heads` (`{name: path}`) beside its own, and return its model.

    A path is a head file or a model folder with a head of that name. Predictions of `base` stay bit-equal: its
    test-time strategy and evaluation transforms are kept, with a warning for heads that were validated with others.

    Raises CheckpointError for damaged files and heads of another backbone, ConfigError for a name that is taken and for
    different classes of one field, DiskError.
    """
    model, info = read_model_folder(base)
    recipe = info['recipe']
    state = {name: value for name, value in model.state_dict().items() if name.startswith('network.')}
    own = fingerprint(model, recipe, state)
    metainfo = {key: dict(info.get(key) or {}) for key in METAINFO}
    read = {task.field for task in model.tasks.values()}
    for name, path in heads.items():
        where = f'--head {name}={path}'
        head = read_head(path, name)
        check_backbone(head, own, where=where)
        check_strategy(head.name, head.transforms, head.tiler, info['transforms'], recipe.get('tiler'))
        metainfo = with_classes(metainfo, read, head.field, head.metainfo, where=where)
        recipe = with_branch(recipe, name, head.branch, head.task, where=where)
        state |= weights_of(head)
        read.add(head.field)
    with limit_tensors(state, Path(base) / 'model.json'):
        merged = build(recipe, classes=metainfo['classes'])
    load_weights(merged, state, where=str(out))
    extra = {'mean': list(merged.network.mean), 'std': list(merged.network.std)}
    extra |= {key: info[key] for key in ('value_range',) if key in info}
    save_model_folder(out, recipe, state, metainfo=metainfo, transforms=info['transforms'], extra=extra)
    return merged


def split_heads(base: str | Path, out: str | Path) -> list[Path]:
    """Write every head of a model folder to a file of its own in the folder `out`, and return their json files."""
    model, info = read_model_folder(base)
    parts = dict(recipe=info['recipe'], state=model.state_dict(), metainfo=info, transforms=info['transforms'])
    return [save_head(out, extract_head(model, name, **parts)) for name in model.network.names]


def with_branch(
    recipe: Mapping[str, Any], name: str, branch: Mapping[str, Any], task: Mapping[str, Any], *, where: str
) -> dict[str, Any]:
    """Return a model recipe with one more branch, reduced to `INFERENCE_KEYS`.

    Raises ConfigError when the network has no branches, or has one of that name.
    """
    network = recipe['network']
    why = 'the trained model takes no further heads: its head is not apart from its backbone'
    fix = 'give a model whose network is a SharedNetwork'
    check(bool(network.get('branches')), f'{where}: network', network.get('type'), why, fix)
    why = f'the trained model has this head already; its heads are: {", ".join(network["branches"])}'
    fix = 'give the new head another name; to train the old one on, use --weights without --add-head'
    check(name not in network['branches'], f'{where}: name', name, why, fix)
    lasting = {key: recipe[key] for key in INFERENCE_KEYS if key in recipe}
    branches = {**network['branches'], name: branch}
    return {
        **lasting,
        'network': {**network, 'branches': branches},
        'tasks': {**recipe['tasks'], name: task},
    }


def with_classes(
    metainfo: Mapping[str, Any], read: set[str], field: str, known: Mapping[str, Any], *, where: str
) -> dict[str, Any]:
    """Return `metainfo` with what is `known` of the classes of `field`.

    `read` are the fields that other heads read. Raises ConfigError when they have other classes of this one.
    """
    ours, theirs = (metainfo.get('classes') or {}).get(field), known.get('classes')
    if field in read and ours is not None and theirs is not None and list(ours) != list(theirs):
        raise ConfigError(
            f"the heads have different classes of '{field}'",
            where=where,
            why=f'the model has {len(ours)} ({", ".join(ours[:3])}, ...), '
            f'the new head {len(theirs)} ({", ".join(theirs[:3])}, ...)',
            fix='a model has one list of classes for each field of targets: train the head with the same classes',
        )
    added = {key: {**(metainfo.get(key) or {}), field: known[key]} for key in METAINFO if known.get(key) is not None}
    return {**metainfo, **added}


def check_strategy(name: str, transforms: Any, tiler: Any, base_transforms: Sequence[Any], base_tiler: Any) -> None:
    """Warn when the head `name` was validated in another way than the model it joins."""
    pairs = (('transforms', list(transforms or ()), list(base_transforms)), ('tiler', tiler, base_tiler))
    for what, theirs, ours in pairs:
        if not same(theirs, ours):
            logger.warning('%s was validated with %s %s; the model keeps %s', name, what, theirs, ours)
