"""A config with the data of a folder in place of its own: `--data FOLDER`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdense.config.sections import FOLLOWS
from vitdense.data.formats.labelled_folder import LOOKED_FOR, LabelledFolder, read_folder, with_validation
from vitdense.errors import ConfigError

logger = logging.getLogger('vitdense')
KEPT = {  # arguments of a data set that do not say where the data is or what its labels mean
    'type', 'transforms', 'evaluation', 'masks', 'skip_unmasked', 'drop_empty', 'check_sizes', 'max_pixels',
    'value_range', 'cache', 'follow_links',
}  # fmt: skip
TASKS = {
    'vitdense.data.coco.dataset.CocoDetection': 'detection',
    'vitdense.data.segmentation.SegmentationDataset': 'segmentation',
    'vitdense.data.classification.ClassificationDataset': 'classification',
}


def use_folder(
    content: dict[str, Any],
    folder: str | Path,
    *,
    file: str = '',
    split: str | None = None,
    held_out: float | None = None,
) -> None:
    """Let the loader sections of a config read the splits of `folder`, with the transforms that they have.

    The test section reads the split `split`; by default the folder's test split, else that of validation. Of a folder
    without validation the share `held_out` of the images for training is taken for that, in a random order. Raises
    DataError for a folder that is not recognised, ConfigError when it has labels for another task, or no split for
    training or validation.
    """
    data = read_folder(Path(folder))
    if held_out is not None:
        data = with_validation(data, held_out)
    logger.info('%s: %s, %s', folder, data.format, ', '.join(data.splits))
    content['data_root'] = str(folder)
    wanted = {'train_dataloader': 'train', 'val_dataloader': 'val'}
    for key, name in wanted.items():
        if content.get(key):
            content[key] = _section(content[key], data, name, where=f'{file}: {key}.dataset')
    test = split or ('test' if 'test' in data.splits else 'val')
    for key, source in FOLLOWS.items():
        content.pop(key, None)
        if content.get(source) is not None:
            content[key] = copy.deepcopy(content[source])
    if content.get('test_dataloader'):
        where = f'{file}: test_dataloader.dataset'
        content['test_dataloader'] = _section(content['test_dataloader'], data, test, where=where)


def _section(section: Mapping[str, Any], data: LabelledFolder, split: str, *, where: str) -> dict[str, Any]:
    """Return a loader section that reads a split of `data`."""
    recipe = section.get('dataset')
    kind = recipe.get('type') if isinstance(recipe, Mapping) else None
    name = kind if isinstance(kind, str) else f'{getattr(kind, "__module__", "")}.{getattr(kind, "__qualname__", "")}'
    if TASKS.get(name) != data.task:
        raise ConfigError(
            f'the config is not for {data.task}, but the folder has labels for that ({data.format})',
            where=where,
            why=f'it trains on {TASKS.get(name, "data of several tasks or another kind")}',
            fix='choose a config of the same task: configs/detection, configs/semantic or configs/classification',
        )
    if split not in data.splits:
        raise ConfigError(
            f"{data.root} has no split '{split}'",
            where='--data' if split in ('train', 'val') else '--split',
            why=f'found {data.format} with {", ".join(data.splits)}; looked for {LOOKED_FOR}',
            fix=f"call a folder, a file or a list '{split}', or give the paths in a config: docs/your_own_data.md",
        )
    kept = {key: value for key, value in recipe.items() if key in KEPT}
    return {**section, 'dataset': kept | data.splits[split]}
