"""The config of a run that trains a model on the data of a folder: `train.py --model MODEL --data FOLDER`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitdense.checkpoints.descriptions import CONVERSION, read_description, without_pretrained
from vitdense.checkpoints.model_folder import CONTENT, model_folder_of
from vitdense.checkpoints.omitted_weights import without_lora
from vitdense.checkpoints.run_folder import best_of, run_folder_of
from vitdense.checkpoints.trained import Trained, read_trained
from vitdense.config.load import KEYS, complete_config
from vitdense.config.locate import read_config
from vitdense.config.own_data import use_folder
from vitdense.config.run_config import RunConfig
from vitdense.config.training_recipe import head_of, training_sections
from vitdense.data.formats.labelled_folder import read_folder
from vitdense.errors import ConfigError

logger = logging.getLogger('vitdense')
OF_RUN = ('work_dir', 'add_head', 'keep_classes')  # sections that belong to the run of a model, not to the next one


def config_from_model(
    model: str | Path,
    data: str | Path,
    *,
    training: str | Path | None = None,
    options: Sequence[str] = (),
    workers: int | None = None,
    held_out: float | None = None,
    split: str | None = None,
) -> tuple[RunConfig, str]:
    """Return the config that trains `model` on the labelled images of the folder `data`, and the path of the weights
    that such a run begins with (`FromWeights`).

    `model` is the folder of a run, a model folder, a checkpoint of a run, or a head file beside its backbone: it brings
    the architecture and the evaluation transforms. Transforms of training, optimizer and schedule come from the config
    `training`; by default from the config of the model's own run, where it is at hand, else from the file of the task
    in `configs/_base_/training`. `options` are `K=V` words, `held_out` and `split` are those of `use_folder`. The work
    directory is called as the folder of the data.

    Raises ConfigError where the model has no head for the labels of the folder, or several heads; CheckpointError,
    DataError.
    """
    path, task = Path(model), read_folder(Path(data)).task
    content, file, weights = _of_run(path) if training is None else (None, '', path)
    if content is None:
        content, file = _described(path, task, training)
    head_of(content['model'], task, where=str(model))
    for key in OF_RUN:
        content.pop(key, None)
    use_folder(content, data, file=file, held_out=held_out, split=split)
    content['work_dir'] = str(Path('work_dirs') / Path(data).resolve().name)
    return complete_config(content, file, options, workers=workers), str(weights)


def _of_run(path: Path) -> tuple[dict[str, Any] | None, str, Path]:
    """Return the sections of the config of the run that `path` belongs to (None: of none), their file, and the path of
    the weights.
    """
    run = run_folder_of(path)
    if run is None:
        return None, '', path
    file = run / 'config.py'
    content = read_config(file, KEYS)
    weights = (best_of(run) or run) if path == run else path
    if model_folder_of(weights).is_dir():  # LoRA is merged there
        content['model'] = read_description(model_folder_of(weights) / 'model.json', CONTENT)['recipe']
    elif without_lora(content['model']) == content['model']:
        content['model'] = without_pretrained(content['model'])  # the checkpoint holds all weights
    logger.info('training as in %s', file)
    return content, str(file), weights


def _described(path: Path, task: str, training: str | Path | None) -> tuple[dict[str, Any], str]:
    """Return the sections of a config for a model that is described by itself, and the file that they come from."""
    trained = read_trained(path, weights=False)
    if trained.recipe is None:
        raise ConfigError(
            f"'{path.name}' holds weights, and nothing says of which architecture",
            where=f'--model {path}',
            why='it is neither a model folder nor a checkpoint of a run',
            fix=f'give a config that describes the model: train.py CONFIG --weights {path}, or a model folder:\n'
            f'{CONVERSION}',
        )
    if training is None and trained.config:
        logger.info('training as in the run of %s', path)
        return _sections_of(trained), str(path)
    head = head_of(trained.recipe, task, where=str(path))
    content, file = training_sections(trained.recipe, trained.transforms, head, training and str(training))
    if trained.value_range:
        for key in ('train_dataloader', 'val_dataloader'):
            content[key]['dataset']['value_range'] = tuple(trained.value_range)
    return content, file


def _sections_of(trained: Trained) -> dict[str, Any]:
    """Return the sections of the config that a checkpoint holds; where it omits weights, the model names their file."""
    sections = {key: value for key, value in trained.config.items() if key in KEYS}
    return sections if trained.omitted else {**sections, 'model': trained.recipe}
