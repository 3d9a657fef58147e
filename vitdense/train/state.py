"""The state of a run between two steps: the content of a checkpoint, and its restoration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitdense
from vitdense.checkpoints.run import read_checkpoint, to_cpu
from vitdense.checkpoints.shard_folder import fill_shards
from vitdense.config.dump import config_text
from vitdense.distributed.sharding import shard_like, shards_of
from vitdense.storage.tensor_shards import is_distributed


def run_state(loop: Any) -> dict[str, Any]:
    """Return the content of a checkpoint of a `TrainingLoop` (see `vitdense.checkpoints.run`).

    In a sharded run its weights and moments are distributed tensors, and all processes call this together.
    """
    with shards_of(loop.runner.network_model):
        return _content(loop)


def _content(loop: Any) -> dict[str, Any]:
    runner, wrapper = loop.runner, loop.runner.optim_wrapper
    model, omitted = runner.network_model, loop.omitted
    batch_size = loop.dataloader.batch_size
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    weights = to_cpu({name: value for name, value in model.state_dict().items() if name not in omitted})
    content = {
        'format': 1,
        'version': vitdense.__version__,
        'config': config_text(runner.config),
        'seed': loop.seed,
        'amp': runner.precision.name,
        'step': loop.iter,
        'samples_seen': loop.samples_before + (loop.iter - loop.first_step) * batch_size * runner.world_size,
        'batch_size': batch_size,
        'world_size': runner.world_size,
        'accumulative_counts': wrapper._accumulative_counts,
        'validation_pending': loop.validation_pending,
        'classes': _plain(model.classes),
        'metainfo': _plain(runner.metainfo),
        'omitted_weights': omitted,
        'parameter_groups': [[names[id(each)] for each in group['params']] for group in wrapper.optimizer.param_groups],
        'state_dict': weights,
        **to_cpu(wrapper.state_dict()),
        'operating_points': loop.operating_points,
        **loop.history.state(),
        **(loop.ema.state(weights) if loop.ema is not None else {}),
        **(loop.early_stopping.state() if loop.early_stopping is not None else {}),
    }
    runner.call_hook('before_save_checkpoint', checkpoint=content)
    return content


def restore_run(loop: Any, checkpoint: Mapping[str, Any]) -> None:
    """Go on from the content of a checkpoint, whose tensors may still be shards on the disk."""
    runner = loop.runner
    checkpoint = fill_shards(checkpoint, partial(_divided, _templates(checkpoint, runner)))
    runner.network_model.load_state_dict({**checkpoint['state_dict'], **checkpoint.get('training_state_dict', {})})
    runner.optim_wrapper.load_state_dict(checkpoint)
    loop.iter = loop.first_step = checkpoint['step']
    runner.optim_wrapper.set_learning_rates(loop.schedule, max(loop.iter - 1, 0))  # those of the last step
    loop.samples_before = checkpoint['samples_seen']
    loop.validation_pending = checkpoint['validation_pending']
    loop.history.restore(checkpoint)
    loop.operating_points = checkpoint.get('operating_points', {})
    if loop.history.best.get('step', 0) > loop.iter:  # its validation is done again, and does not improve on itself
        loop.operating_points = read_checkpoint(runner.folder / 'best.pth').get('operating_points', {})
    loop.saving.restore(checkpoint)
    if loop.ema is not None:
        loop.ema.restore(checkpoint)
    if loop.early_stopping is not None and loop.early_stopping.restore(checkpoint):
        loop.stop_training = True
    runner.call_hook('after_load_checkpoint', checkpoint=checkpoint)


def _templates(checkpoint: Mapping[str, Any], runner: Any) -> dict[str, Tensor]:
    """Return, by key path in a checkpoint, the sharded parameter of each tensor (values, average or moment)."""
    parameters = {name: value for name, value in runner.network_model.named_parameters() if is_distributed(value)}
    if not parameters:
        return {}
    keys = ('state_dict', 'training_state_dict')
    tensors = {f'{key}.{name}': value for key in keys for name, value in parameters.items()}
    rows = [parameters[name] for group in checkpoint.get('parameter_groups', ()) for name in group]
    rows = rows or runner.optim_wrapper.parameters
    for row, moments in checkpoint['optimizer']['state'].items():
        tensors |= {f'optimizer.state.{row}.{key}': rows[row] for key in moments}
    return tensors


def _divided(templates: Mapping[str, Tensor], path: str, value: Tensor) -> Tensor:
    """Return a tensor of a checkpoint divided as its parameter is; a meta tensor becomes one to be read into."""
    template = templates.get(path)
    if template is None or template.shape != value.shape:
        return value
    return torch.zeros_like(template, dtype=value.dtype) if value.is_meta else shard_like(value, template)


def _plain(value: Any) -> Any:
    """Return metainfo as dicts, lists, words and numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value
