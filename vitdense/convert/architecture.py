"""Our model of a checkpoint: its classes, and the config whose network has the tensors of the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.config.classes import field_of, metainfo_of, named_metainfo
from vitdense.config.load import image_recipe, load_config
from vitdense.config.locate import shipped_config
from vitdense.config.run_config import RunConfig
from vitdense.convert.families import COCO_IDS, COCO_ROWS, translate
from vitdense.convert.key_rules import CheckpointFamily
from vitdense.convert.peer_files import PeerInfo
from vitdense.convert.published_models import configs_of
from vitdense.errors import CheckpointError, ConfigError, some
from vitdense.pretrained.foreign_names import rename
from vitdense.registry import build
from vitdense.storage.weights import State

logger = logging.getLogger('vitdense')
DINOV2_SIDE = 518
RESIZE = 'val_dataloader.dataset.transforms.resize.size'
_MISFIT = (RuntimeError, ValueError, KeyError, IndexError, AttributeError)  # of tensors of another model


class CheckpointClasses(NamedTuple):
    """The classes of a checkpoint."""

    metainfo: dict[str, Any]  # of the model folder
    rows: Sequence[int]  # of the classifiers, one per class


def classes_of(
    cfg: RunConfig, state: State, published: CheckpointFamily, info: PeerInfo, num_classes: int | None = None
) -> CheckpointClasses:
    """Return the classes of a checkpoint for the model of `cfg`: `num_classes` placeholders; or COCO's, where there is
    a row for each of its category ids; or those that the checkpoint names; or those of the config's data.

    Raises ConfigError where their number is not known.
    """
    count = state_rows(state, published)
    if num_classes is not None:
        return CheckpointClasses(metainfo_of(cfg, num_classes=num_classes), range(num_classes))
    coco = _coco_metainfo()
    if published.coco and count in (None, COCO_ROWS) and _names_coco(info.classes, coco):
        return CheckpointClasses(coco, COCO_IDS)
    if info.classes is not None:
        rows = [row for row, name in enumerate(info.classes[:count]) if name]
        fields = {field_of(task) for task in cfg.model['tasks'].values()}
        return CheckpointClasses(named_metainfo([info.classes[row] for row in rows], fields), rows)
    if published.coco and count == len(COCO_IDS):
        return CheckpointClasses(coco, range(count))
    if published.coco:
        raise ConfigError(
            f'the checkpoint has rows for {count} classes, whose names are not known',
            where='--num-classes',
            why='it does not name them',
            fix=f'give --num-classes {count}, or fewer where the last rows are no classes; '
            'they are called class 0, ...',
        )
    try:
        metainfo = metainfo_of(cfg)
    except ConfigError:
        if count != len(COCO_IDS):
            raise
        metainfo = coco  # in the order of their ids
    return CheckpointClasses(metainfo, range(count or 0))


def state_rows(state: State, published: CheckpointFamily) -> int | None:
    """Return the number of classes that the classifier of a checkpoint has rows for; None where it has none."""
    names = {rename(name, published.rules): value for name, value in state.items()}
    classifier = names.get(published.classifier)
    return None if classifier is None else len(classifier) - published.other_rows


def choose_config(
    family: str,
    published: CheckpointFamily,
    state: State,
    info: PeerInfo,
    *,
    num_classes: int | None = None,
    options: Sequence[str] = (),
) -> RunConfig:
    """Return the config of the family, changed by `options`, whose network has the tensors of a checkpoint, for images
    of the checkpoint's size. Raises CheckpointError where there is none.
    """
    ranks, differences = {}, {}
    for path in configs_of(family):
        cfg = load_config(shipped_config(path) or path, options)
        classes = classes_of(cfg, state, published, info, num_classes)
        recipe = match_vit(without_pretrained(cfg.model), state, published)
        differences[path] = _differences(recipe, info, state, published, classes)
        if not differences[path]:
            side = _table_side(cfg.model, recipe)
            ranks[path] = (side is not None, abs((info.size or side or 0) - (_resize_step(cfg).get('size') or 0)), side)
    if not ranks:
        nearest = min(differences, key=lambda path: len(differences[path]))
        raise CheckpointError(
            'none of our configs has the tensors of this checkpoint',
            where=f'{len(state)} tensors',
            why=f'it was compared with {some(configs_of(family), 10)};\n'
            f'of the nearest, {nearest}, differ {some(differences[nearest], 3)}',
            fix='write a config of its architecture, and give it: --config CONFIG',
        )
    path = min(ranks, key=lambda each: ranks[each][:2])
    side = info.size or ranks[path][2]
    cfg = load_config(shipped_config(path) or path, options)
    step = _resize_step(cfg)
    if side not in (None, step.get('size')) and str(step.get('type')).endswith('.ResizeTo'):
        cfg = load_config(shipped_config(path) or path, [f'{RESIZE}={side}', *options])
    logger.info('%s, images of %s pixels', path, _resize_step(cfg).get('size'))
    return cfg


def match_vit(recipe: dict[str, Any], state: Mapping[str, Tensor], published: CheckpointFamily) -> dict[str, Any]:
    """Return the recipe with the ViT of the published weights: without a final norm where they have none, with a table
    of positions of their size where they have a class token (others are resampled as they come), and inside a
    ViT-Adapter without LayerScale where they have none.
    """
    backbone = recipe['network'].get('backbone')
    if not isinstance(backbone, Mapping):
        return recipe
    inner = 'vit' in backbone
    vit = dict(backbone['vit'] if inner else backbone)
    prefix = 'backbone.vit.model.' if inner else 'backbone.model.'
    renamed = {rename(theirs, published.rules): value for theirs, value in state.items()}
    table, kernel = renamed.get(f'{prefix}pos_embed'), renamed.get(f'{prefix}patch_embed.proj.weight')
    has_token = table is not None and kernel is not None and f'{prefix}cls_token' in renamed
    if has_token and not _has_grid(vit.get('img_size'), kernel.shape[-1], table.shape[-2]):
        vit['img_size'] = round(table.shape[-2] ** 0.5) * kernel.shape[-1]
    if kernel is not None and f'{prefix}norm.weight' not in renamed:
        vit['timm_args'] = {**(vit.get('timm_args') or {}), 'final_norm': False}
    if inner and kernel is not None and f'{prefix}blocks.0.ls1.gamma' not in renamed:
        vit['timm_args'] = {**(vit.get('timm_args') or {}), 'init_values': None}
    return {**recipe, 'network': {**recipe['network'], 'backbone': {**backbone, 'vit': vit} if inner else vit}}


def _has_grid(img_size: int | Sequence[int] | None, patch: int, count: int) -> bool:
    """Whether images of this size have the grid of a table with `count` positions, up to five of prefix tokens."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size or (0, 0)
    return 0 <= count - (height // patch) * (width // patch) <= 5


def _differences(
    recipe: dict[str, Any], info: PeerInfo, state: State, published: CheckpointFamily, classes: CheckpointClasses
) -> list[str]:
    """Return in what a model differs from a checkpoint: its tensors, and the layers and windows of a detector that the
    checkpoint states, which its tensors do not show. Nothing is allocated.
    """
    branches = recipe['network'].get('branches') or {}
    layers = [tuple(branch['adapter'].get('layers') or ()) for branch in branches.values() if 'adapter' in branch]
    split = (recipe['network'].get('backbone', {}).get('windows') or {}).get('split', 1)
    texts = []
    if info.layers is not None and tuple(info.layers) not in layers:
        texts.append(f'layers of the ViT: file {tuple(info.layers)}, model {", ".join(map(str, layers))}')
    if info.split not in (None, split):
        texts.append(f'windows along a side: file {info.split}, model {split}')
    shapes = {name: torch.empty_like(value, device='meta') for name, value in state.items()}
    try:
        with torch.device('meta'):
            wanted = build(recipe, classes=classes.metainfo['classes']).network.state_dict()
        ours = translate(shapes, published, wanted, classes.rows)
    except (*_MISFIT, ConfigError) as error:  # also of the grid of its positions, in patches of our config
        return texts + [f'shapes ({error})'] * len(state)
    sizes = [{name: tuple(value.shape) for name, value in tensors.items()} for tensors in (ours, wanted)]
    names = [name for name in sizes[0] | sizes[1] if sizes[0].get(name) != sizes[1].get(name)]
    return texts + [f'{name}: file {sizes[0].get(name)}, model {sizes[1].get(name)}' for name in names]


def _table_side(ours: Mapping[str, Any], matched: Mapping[str, Any]) -> int | None:
    """Return the side of the images of a checkpoint's positions, where it is another than that of the config; None for
    the table of DINOv2 itself, which rfdetr's base model keeps whatever the size of its images.
    """
    before, after = (recipe['network']['backbone'].get('img_size') for recipe in (ours, matched))
    return after if after not in (before, DINOV2_SIDE) and isinstance(after, int) else None


def _resize_step(cfg: RunConfig) -> Mapping[str, Any]:
    """Return the evaluation transform of a config that resizes images; an empty one where there is none."""
    return next((step for step in image_recipe(cfg)['transforms'] if 'size' in step), {})


def _coco_metainfo() -> dict[str, Any]:
    by_id = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta['categories']
    metainfo = named_metainfo([by_id[number] for number in COCO_IDS], ('labels',))
    return {**metainfo, 'category_ids': {'labels': list(COCO_IDS)}}


def _names_coco(names: Sequence[str] | None, coco: Mapping[str, Any]) -> bool:
    """Whether names of 91 rows are those of COCO, by row or in a list without the unused ones, or none at all."""
    return names is None or [name for name in names if name] == coco['classes']['labels']
