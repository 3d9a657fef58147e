"""Replay files: a training step whose numbers were not finite, with all that is needed to repeat it.

A replay file is a dict of tensors and plain Python, written with torch.save and read without running code: `format` 1,
`version`, `config` (text), `classes`, `amp`, `scale` of the loss, `step` (from 1), `rank`, `error`, `inputs` (the batch
after augmentation), `rng` (states of torch's generators before the network), `state_dict` (all weights) and
`non_finite`: the names of the tensors that were not finite, None where several processes trained.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

import vitdense
from vitdense.checkpoints.descriptions import check_recipes
from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.checkpoints.run import to_cpu
from vitdense.config.dump import config_text
from vitdense.config.from_text import model_in
from vitdense.device import choose_device, choose_precision
from vitdense.errors import CheckpointError, NumericsError, VitDenseError, cause_of
from vitdense.registry import build
from vitdense.replay.non_finite import StepInputs, non_finite_tensors
from vitdense.storage.atomic import atomic_path, disk_problem
from vitdense.storage.tensor_shards import is_distributed
from vitdense.storage.weight_files import load_pickle
from vitdense.types import Meta, Target

logger = logging.getLogger('vitdense')
FORMAT = 1
CONTENT = ('config', 'classes', 'amp', 'scale', 'step', 'error', 'inputs', 'rng', 'state_dict', 'non_finite')


def record_step(loop: Any, error: NumericsError) -> None:
    """Write the failed step of a `TrainingLoop` to `debug/nan_replay.pt` of the work directory, one file for each rank.

    Of the batches since the last update it is the first with tensors that are not finite, else the last. The fix of the
    `error` then names the tool that reads the file; where the disk refuses the file, a warning is logged.
    """
    runner, model = loop.runner, loop.runner.network_model
    if any(map(is_distributed, model.parameters())):
        logger.warning('a run whose processes share the model (--parallel fsdp) writes no replay file')
        return
    path = runner.folder / 'debug' / ('nan_replay.pt' if not runner.rank else f'nan_replay_rank{runner.rank}.pt')
    content = {
        'format': FORMAT,
        'version': vitdense.__version__,
        'config': config_text(runner.config),
        'classes': {field: list(names) for field, names in model.classes.items()},
        'amp': runner.precision.name,
        'scale': runner.optim_wrapper.scaler.get_scale(),
        'step': loop.iter + 1,
        'rank': runner.rank,
        'error': error.message,
        'state_dict': {name: value.detach().cpu().clone() for name, value in model.state_dict().items()},
    }
    for step, batch in loop.batches:
        inputs, rng = loop.seeded_inputs(step, batch), _rng_states(model)
        # several ranks may not fail at the same place of a step, where they would wait for each other
        names = non_finite_tensors(model, inputs, scale=content['scale']) if runner.world_size == 1 else None
        content |= {'inputs': _packed(inputs), 'rng': rng, 'non_finite': names}
        if names:
            break
    if loop.batches and _write(path, content):
        error.fix += f'\nwhich tensors are not finite: python tools/replay_nan.py {path}'


def _write(path: Path, content: dict[str, Any]) -> bool:
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, 'wb') as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        logger.warning('%s: %s not written', disk_problem(error), path.name)
        return False
    return True


def read_replay(path: str | Path) -> dict[str, Any]:
    """Return the content of a replay file, without running code. Raises CheckpointError."""
    path = Path(path)
    try:
        content = load_pickle(path)
        missing = [name for name in CONTENT if name not in content]
        if missing:
            raise ValueError(f'it lacks {", ".join(missing)}')
        content['inputs'] = _unpacked(content['inputs'])
    except Exception as error:  # foreign bytes fail in any way
        raise CheckpointError(
            f"'{path.name}' is no replay file",
            where=str(path),
            why=cause_of(error),
            fix='give the debug/nan_replay.pt of a run that ended with error[numerics]',
        ) from error
    return content


def replay(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Repeat the step of a replay file; return the content of the file and the names found now.

    A step of a GPU is repeated on one where there is one.
    Types of its model are looked up among the parts of vitdense only. Raises CheckpointError.
    """
    content = read_replay(path)
    recipe = without_pretrained(model_in(content))
    check_recipes([recipe], Path(path))
    try:
        model = build(recipe, classes=content['classes'])
        model.load_state_dict(content['state_dict'])
    except (VitDenseError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            'the model of the replay file cannot be built',
            where=str(path),
            why=str(error).splitlines()[0],
            fix='use the version of vitdense that wrote the file',
        ) from error
    device = choose_device(None if 'cuda' in content['rng'] else 'cpu')
    model.amp = choose_precision(content['amp'], device).dtype
    model.to(device).train()
    inputs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, content['inputs'])
    torch.set_rng_state(content['rng']['cpu'])
    if device.type == 'cuda':
        torch.cuda.set_rng_state(content['rng']['cuda'], device)
    return content, non_finite_tensors(model, inputs, scale=content['scale'])


def _rng_states(model: nn.Module) -> dict[str, torch.Tensor]:
    device = next(model.parameters()).device
    states = {'cpu': torch.get_rng_state()}
    return states | ({'cuda': torch.cuda.get_rng_state(device)} if device.type == 'cuda' else {})


def _packed(inputs: StepInputs) -> dict[str, Any]:
    """Return the inputs as dicts, lists and tensors on the CPU."""
    rows = {'targets': [row._asdict() for row in inputs.targets], 'metas': [row._asdict() for row in inputs.metas]}
    return to_cpu({'imgs': inputs.imgs, 'valid': inputs.valid, **rows})


def _unpacked(packed: Mapping[str, Any]) -> StepInputs:
    targets = [Target(**row) for row in packed['targets']]
    return StepInputs(packed['imgs'], targets, [Meta(**row) for row in packed['metas']], packed['valid'])
