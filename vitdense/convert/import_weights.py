"""Conversion of a published checkpoint to a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from vitdense.checkpoints.model_folder import save_model_folder, without_pretrained
from vitdense.config.classes import metainfo_of, section_of
from vitdense.config.load import image_recipe
from vitdense.config.run_config import RunConfig
from vitdense.convert.families import COCO_IDS, FAMILIES, load_published, rename
from vitdense.convert.key_rules import CheckpointFamily
from vitdense.data.class_names import read_palette
from vitdense.errors import CheckpointError, ConfigError, did_you_mean
from vitdense.registry import build
from vitdense.storage.atomic import sha256_of, write_text
from vitdense.storage.weight_sets import split_key
from vitdense.storage.weights import Coverage, State, read_weights

CARD = 'README.md'


def import_weights(
    family: str,
    files: Sequence[str | Path],
    cfg: RunConfig,
    folder: str | Path,
    *,
    num_classes: int | None = None,
    accept_licence: bool = False,
    base: str | Path | None = None,
) -> Coverage:
    """Write the model folder of published weights and return the coverage.

    `family` is one of `FAMILIES`; `files` are its checkpoint, or its parts (a backbone and a head). `cfg` is our config
    of the same architecture: it gives the model, the transforms of evaluation and the classes, for which its data
    need not be there (`metainfo_of`; COCO's own names where a family has them). Checkpoints that are differences (EoMT
    on DINOv3) need the file `base` of the pretrained backbone, to which they are added. Source, licence and checksums
    stand in `model.json`, and in the model card README.md.

    Raises ConfigError for an unknown family, and for a licence that is not free or not known, unless `accept_licence`;
    CheckpointError, with the names, when a tensor is missing or left over.
    """
    published = find_family(family)
    check_licence(published, accepted=accept_licence)
    state = read_parts(files)
    metainfo = _metainfo(cfg, published, num_classes)
    recipe = match_vit(without_pretrained(cfg.model), state, published)
    model = build(recipe, classes=metainfo['classes'])
    coverage = load_published(
        model.network,
        state,
        published,
        where=', '.join(Path(file).name for file in files),
        base=None if base is None else read_weights(base),
    )
    provenance = origin(family, published, files if base is None else [*files, base])
    extra = {'mean': list(model.network.mean), 'std': list(model.network.std)}
    save_model_folder(
        folder,
        recipe,
        model.state_dict(),
        metainfo=metainfo,
        transforms=image_recipe(cfg)['transforms'] if section_of(cfg) else [],
        extra={**extra, 'licence': published.licence, 'published': provenance},
    )
    write_text(Path(folder) / CARD, model_card(provenance, coverage))
    return coverage


def find_family(name: str) -> CheckpointFamily:
    """Return the family of this name. Raises ConfigError."""
    if name not in FAMILIES:
        raise ConfigError(
            f"no family of published weights is called '{name}'{did_you_mean(name, FAMILIES)}",
            where='FAMILY',
            why=f'known are {", ".join(FAMILIES)}',
            fix='choose one of these',
        )
    return FAMILIES[name]


def check_licence(published: CheckpointFamily, *, accepted: bool) -> None:
    """Raise ConfigError for weights with a restrictive or unknown licence, unless `accepted`."""
    if published.free or accepted:
        return
    raise ConfigError(
        f'the licence of these weights has conditions: {published.licence or "unknown"}',
        where=published.source,
        why=published.evidence or 'no licence could be established: without one, nobody may use them',
        fix='read the licence, and add --accept-licence if you may use the weights under it',
    )


def read_parts(files: Sequence[str | Path]) -> State:
    """Return the tensors of all files together. Raises CheckpointError when two files have one of the same name."""
    state: State = {}
    for file in files:
        part = read_weights(file)
        double = sorted(set(part) & set(state))
        if double:
            raise CheckpointError(
                f'two files have a tensor called {double[0]}',
                where=str(file),
                why='files of one model are parts of it: a backbone and a head',
                fix='give the files of one model only',
            )
        state |= part
    return state


def _metainfo(cfg: RunConfig, published: CheckpointFamily, num_classes: int | None) -> dict[str, Any]:
    if not published.coco or num_classes is not None:
        return metainfo_of(cfg, num_classes=num_classes)
    by_id = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta['categories']
    labels = [by_id[number] for number in COCO_IDS]
    return {
        'classes': {'labels': labels},
        'palette': {'labels': read_palette(None, labels)},
        'category_ids': {'labels': list(COCO_IDS)},
    }


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


def origin(family: str, published: CheckpointFamily, files: Sequence[str | Path]) -> dict[str, Any]:
    """Return source, licence and files of weights, for the model card."""
    return {
        'family': family,
        'name': published.name,
        'source': published.source,
        'licence': published.licence or 'unknown',
        'licence_stated_in': published.evidence or 'nowhere that could be found',
        'note': published.note,
        'files': [{'name': path.name, 'sha256': sha256_of(path)} for path, _ in map(split_key, files)],
    }


def model_card(provenance: Mapping[str, Any], coverage: Coverage) -> str:
    """Return the text of a model card."""
    files = '\n'.join(f'- `{file["name"]}`, SHA-256 `{file["sha256"]}`' for file in provenance['files'])
    note = f'- {provenance["note"]}\n' if provenance['note'] else ''
    return (
        f'# {provenance["name"]}\n\n'
        f'Published weights under the names of vitdense; {coverage}.\n\n'
        f'- Source: {provenance["source"]}\n'
        f'- Licence of the weights: {provenance["licence"]}\n'
        f'- Where that is stated: {provenance["licence_stated_in"]}\n'
        f'- The data that they were trained on has terms of its own.\n'
        f'{note}\n'
        f'Made from:\n\n{files}\n'
    )
