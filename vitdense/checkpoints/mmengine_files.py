"""Checkpoints of mmengine's own Runner, as the content of a run to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vitdense.storage.weight_files import check_tensors, read_content


def read_mmengine(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint of mmengine's Runner with the keys of one of vitdense; None for any other file.

    Weights, averaged weights, the step and the optimizer are taken; logs (`message_hub`), which need classes of
    mmengine to be read, are not. No code of the file is run. What depends on the run at hand is missing:
    `samples_seen`, `batch_size`, `world_size`, `classes`. Raises CheckpointError.
    """
    raw = read_content(path)
    meta = raw.get('meta') if isinstance(raw, Mapping) else None
    step = meta.get('iter') if isinstance(meta, Mapping) else None
    state = raw.get('state_dict') if isinstance(raw, Mapping) else None
    if not isinstance(step, int) or step < 0 or not isinstance(state, Mapping) or 'optimizer' not in raw:
        return None
    weights = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    check_tensors(weights, path)
    averaged = raw.get('ema_state_dict')  # EMAHook swaps: `state_dict` is the average, and the other is trained
    training = {
        name.removeprefix('module.'): value
        for name, value in (averaged.items() if isinstance(averaged, Mapping) else ())
        if name.startswith('module.') and isinstance(value, Tensor)
    }
    optimizer = raw['optimizer'] if isinstance(raw['optimizer'], Mapping) else {}
    return {
        'config': '',
        'step': step,
        'amp': 'auto',
        'validation_pending': False,
        'state_dict': weights,
        'optimizer': {key: optimizer.get(key) or default for key, default in (('state', {}), ('param_groups', []))},
        'scaler': {},
        'skipped_steps': {'all': 0, 'in_row': 0},
        **({'training_state_dict': training, 'ema_updates': step} if training else {}),
    }
