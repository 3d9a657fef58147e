"""Whether a checkpoint is one that a run can go on from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from vitdense.engine.batches import Batches, compare_batches
from vitdense.errors import ConfigError
from vitdense.model import DenseModel

logger = logging.getLogger('vitdense')


def check_resumable(checkpoint: Mapping[str, Any], model: DenseModel, batches: Batches) -> None:
    """Raise ConfigError unless the checkpoint is of this model; say what its batches were where they are others now."""
    ours, theirs = ({key: list(names) for key, names in one.items()} for one in (model.classes, checkpoint['classes']))
    differences = [
        f'{key}: checkpoint {theirs.get(key)}, config {ours.get(key)}'
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]
    wanted, given = model.state_dict(), checkpoint['state_dict']
    differences += [
        f'{name}: checkpoint {_shape(given.get(name))}, config {_shape(wanted.get(name))}'
        for name in dict.fromkeys([*wanted, *given])
        if _shape(given.get(name)) != _shape(wanted.get(name))
    ]
    if differences:
        more = f'\n... and {len(differences) - 3} more' if len(differences) > 3 else ''
        raise ConfigError(
            'the checkpoint is of another model',
            where='--resume',
            why='\n'.join(text[:160] for text in differences[:3]) + more,
            fix='resume with the config of that run (config.py in its work directory), or start anew with --weights',
        )
    accumulated = checkpoint.get('accumulative_counts', batches.accumulated)  # older checkpoints do not say
    num_processes = checkpoint['world_size']
    before = Batches(checkpoint['batch_size'] * num_processes, accumulated, num_processes)
    if before != batches:
        text, changed = compare_batches(before, batches)
        logger.log(logging.WARNING if changed else logging.INFO, text)


def _shape(value: torch.Tensor | None) -> str:
    return 'nothing' if value is None else str(tuple(value.shape))
