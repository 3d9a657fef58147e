"""Reading of checkpoints that a run can go on from: those of vitdense, and those of mmengine's own Runner."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from vitdense.checkpoints.mmengine_files import read_mmengine
from vitdense.checkpoints.run import read_checkpoint
from vitdense.errors import CheckpointError
from vitdense.storage.weights import read_weights

logger = logging.getLogger('vitdense')
WHOLE = ('step', 'samples_seen', 'batch_size', 'world_size')  # whole numbers of a checkpoint
CONTENT = (*WHOLE, 'validation_pending', 'classes', 'amp', 'state_dict', 'optimizer', 'scaler', 'skipped_steps')


def read_resumable(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint that a run can go on from, the tensors of a sharded one without values.

    Raises CheckpointError for any other file, with what can be done with it.
    """
    try:
        content = read_checkpoint(path, lazy=True)
    except CheckpointError as error:
        content = None if 'checksum' in error.message or not path.is_file() else _of_mmengine(path)
        if content is None:
            raise _foreign(path, error) from error
        return content
    missing = [key for key in CONTENT if key not in content]
    missing += [key for key in WHOLE if key in content and not isinstance(content[key], int)]
    if missing:
        why = (
            'it holds the best weights, without the state of the run' if path.name == 'best.pth' else 'it holds weights'
        )
        raise _no_run(path, f'{why}: {", ".join(missing)} are missing')
    return content


def _of_mmengine(path: Path) -> dict[str, Any] | None:
    try:
        content = read_mmengine(path)
    except CheckpointError:
        return None
    if content is not None:
        logger.warning('%s is a checkpoint of mmengine: weights, step and moments of the optimizer come from it', path)
    return content


def _no_run(path: Path, why: str, more: str = '') -> CheckpointError:
    return CheckpointError(
        f"'{path.name}' is no checkpoint that a run can go on from",
        where=f'--resume {path}',
        why=why,
        fix=f'start anew with its weights: --weights {path}{more}; or resume from a step_*.pth of a run',
    )


def _foreign(path: Path, error: CheckpointError) -> CheckpointError:
    """Return the error for a file that is no checkpoint of vitdense but may hold weights; else `error`."""
    try:
        if 'checksum' in error.message or not read_weights(path):
            return error
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path) if path.suffix != '.safetensors' else []
    except (CheckpointError, RuntimeError, ValueError, OSError):
        return error
    if any(name.startswith('mmengine.') for name in wanted):
        more = ' (where they are weights of this model), or its ViT with model.network.backbone.pretrained=...'
        return _no_run(
            path, 'it is a checkpoint of mmengine (mmdet, mmseg, ...), whose state is that of its runner', more
        )
    return _no_run(path, 'it holds weights of another program, or weights alone')
