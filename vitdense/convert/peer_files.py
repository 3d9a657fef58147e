"""Metadata in files of rfdetr, LW-DETR and transformers: classes, image size, structure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitdense.errors import CheckpointError, ConfigError
from vitdense.storage.atomic import read_json
from vitdense.storage.weight_files import Placeholder, format_of, read_content, weight_file
from vitdense.storage.weight_sets import split_key

MODEL_TYPES = {'rf_detr': 'rf-detr', 'lw_detr': 'lw-detr', 'eomt': 'eomt', 'eomt_dinov3': 'eomt-dinov3'}
DETECTORS = ('rf-detr', 'lw-detr')  # whose checkpoints hold options of the training
_UNNAMED = re.compile(r'LABEL_\d+|N/?A|')  # transformers' names of classes without a name


class PeerInfo(NamedTuple):
    """Metadata of a published checkpoint; None where it has none."""

    classes: Sequence[str] | None = None  # by row of the classifier; '' for rows without a class
    size: int | None = None  # side of the square images of its evaluation
    layers: Sequence[int] | None = None  # of the ViT whose outputs the detector reads, from 0 on
    split: int | None = None  # windows along a side


def read_info(paths: Sequence[str | Path], family: str) -> PeerInfo:
    """Return what the first file or folder that says anything says. Raises CheckpointError, and ConfigError for a
    folder of another family than `family`.
    """
    for path in paths:
        file, _ = split_key(path)
        info = _of_folder(file, family) if weight_file(file) != file else _of_file(file, family)
        if info != PeerInfo():
            return info
    return PeerInfo()


def _of_folder(folder: Path, family: str) -> PeerInfo:
    config = _read_json(folder / 'config.json')
    kind = config.get('model_type')
    if MODEL_TYPES.get(kind, family) != family:
        raise ConfigError(
            f"'{folder.name}' holds a model of another family",
            where=str(folder / 'config.json'),
            why=f"its model_type is '{kind}', not that of {family}",
            fix=f'write {MODEL_TYPES[kind]} in place of {family}',
        )
    backbone = config.get('backbone_config') or {}
    labels = {int(row): str(name) for row, name in (config.get('id2label') or {}).items()}
    names = ['' if _UNNAMED.fullmatch(name) else name for _, name in sorted(labels.items())]
    outputs, windows = backbone.get('out_indices'), backbone.get('num_windows')
    processor = folder / 'preprocessor_config.json'
    size = (_read_json(processor).get('size') or {}) if processor.is_file() else {}
    side = size['height'] if 'height' in size and size['height'] == size.get('width') else None
    return PeerInfo(
        classes=names if any(names) else None,
        size=config.get('image_size') if kind in ('eomt', 'eomt_dinov3') else side,
        layers=[number - 1 for number in outputs] if outputs else None,
        split=round(windows**0.5) if windows and kind == 'lw_detr' else windows,
    )


def _of_file(file: Path, family: str) -> PeerInfo:
    """Return the metadata in `args`, `model_config` and Lightning's hyper-parameters of a checkpoint."""
    if family not in DETECTORS or (file.is_file() and format_of(file) == 'safetensors'):
        return PeerInfo()
    content = read_content(file)
    if not isinstance(content, Mapping):
        return PeerInfo()
    args = _attributes(content.get('args') or content.get('hyper_parameters'))
    model = args | _attributes(content.get('model_config'))
    names = args.get('class_names')
    info = PeerInfo(
        classes=[str(name) for name in names] if isinstance(names, list | tuple) and names else None,
        size=model.get('resolution'),
    )
    outputs = model.get('out_feature_indexes')
    if 'patch_size' not in model or not isinstance(outputs, list):
        return info  # of LW-DETR, which counts from 0 on, and of the first versions of rfdetr
    return info._replace(layers=[number - 1 for number in outputs], split=model.get('num_windows'))


def _attributes(value: Any) -> dict[str, Any]:
    value = value.state if isinstance(value, Placeholder) else value
    return dict(value) if isinstance(value, Mapping) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        content, why = None, str(error)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"cannot read '{path.name}'",
            where=str(path),
            why=why if content is None else 'it does not hold an object',
            fix='copy the folder again, as save_pretrained of transformers wrote it',
        )
    return content
