"""Resuming from a checkpoint: its fit to the model and the optimizer, and the effects of a changed config.

The model (weights, classes, shapes), the optimizer's kind and moments, and which parameters its groups hold come from
the checkpoint; a config that contradicts them is refused. Everything else follows the config: the schedule, the
learning rate, weight decay, betas and other settings of the optimizer, the factors of its groups, clipping, batch size,
data, seed, averaging, validation and saving. Changes of them are logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vitdense.config.from_text import config_in
from vitdense.config.run_config import RunConfig, same
from vitdense.distributed.batch_size import Batches, compare_batches
from vitdense.errors import ConfigError, short
from vitdense.model import DenseModel
from vitdense.registry import resolve
from vitdense.train.optim import Group, build_optimizer, config_groups

logger = logging.getLogger('vitdense')
MAX_LISTED = 20  # changed values that are listed
ABSENT = object()  # in place of a value that a config does not give
QUIET = ('work_dir', 'num_workers')  # keys whose change changes nothing
ANEW = 'resume with the config of that run (config.py in its work directory), or start anew with --weights CHECKPOINT'


def with_run(checkpoint: Mapping[str, Any], model: DenseModel, batches: Batches) -> Mapping[str, Any]:
    """Return the content of a checkpoint with what one of mmengine does not hold, from the run at hand."""
    if 'samples_seen' in checkpoint:
        return checkpoint
    samples = checkpoint['step'] * batches.total
    sizes = {'batch_size': batches.share, 'world_size': batches.num_processes}
    return {**checkpoint, 'samples_seen': samples, 'classes': model.classes, 'of_mmengine': True, **sizes}


def check_resumable(checkpoint: Mapping[str, Any], model: DenseModel, batches: Batches) -> None:
    """Raise ConfigError unless the checkpoint is of this model; log how its batches differ."""
    ours, theirs = ({key: list(names) for key, names in one.items()} for one in (model.classes, checkpoint['classes']))
    differences = [
        f'{key}: checkpoint {theirs.get(key)}, config {ours.get(key)}'
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]
    wanted, stored = model.state_dict(), checkpoint['state_dict']
    differences += [
        f'{name}: checkpoint {_shape(stored.get(name))}, config {_shape(wanted.get(name))}'
        for name in dict.fromkeys([*wanted, *stored])
        if _shape(stored.get(name)) != _shape(wanted.get(name))
    ]
    if differences:
        raise _mismatch('the checkpoint is of another model', differences)
    accumulated = checkpoint.get('accumulative_counts', batches.accumulated)  # older checkpoints do not have it
    num_processes = checkpoint['world_size']
    before = Batches(checkpoint['batch_size'] * num_processes, accumulated, num_processes)
    if before != batches:
        text, changed = compare_batches(before, batches)
        logger.log(logging.WARNING if changed else logging.INFO, text)


def check_config(checkpoint: dict[str, Any], cfg: RunConfig, model: DenseModel) -> None:
    """Raise ConfigError where the optimizer of the config cannot go on from the checkpoint; log what has changed."""
    section = cfg.optim_wrapper
    groups = config_groups(section, model, split_backbone=bool(cfg.schedule.backbone_warmup_iters))
    try:
        check_optimizer(checkpoint, section['optimizer'], groups)
    except ConfigError as error:
        if not checkpoint.get('of_mmengine'):
            raise
        logger.warning('the moments of the optimizer begin at zero: %s (%s)', error.message, error.why.splitlines()[0])
        checkpoint['optimizer'] = {'state': {}, 'param_groups': []}
    log_changes(checkpoint, cfg)


def check_optimizer(checkpoint: Mapping[str, Any], recipe: Mapping[str, Any], groups: Sequence[Group]) -> None:
    """Raise ConfigError unless the optimizer `recipe` over `groups` can take over the checkpoint's moments."""
    section = config_in(checkpoint).get('optim_wrapper')
    before = section['optimizer']['type'] if isinstance(section, dict) else recipe['type']
    if before != recipe['type'] and resolve(before) is not resolve(recipe['type']):
        difference = f'checkpoint {before}, config {recipe["type"]}'
        raise _mismatch("the optimizer is not the checkpoint's", [f'{difference}: its moments mean something else'])
    saved = checkpoint['optimizer']
    differences = _group_differences(checkpoint.get('parameter_groups'), saved, groups)
    if differences:
        raise _mismatch("the optimizer's groups are not those of the checkpoint", differences)
    moments = {key for state in saved['state'].values() for key in state}
    lacking = sorted(_moments(recipe) - moments) if moments else []
    if lacking:
        why = f'the checkpoint has no {", ".join(lacking)}, which the config asks the optimizer for'
        raise _mismatch("the optimizer's settings are not those of the checkpoint", [why])


def _group_differences(names: Sequence[Sequence[str]] | None, saved: Any, groups: Sequence[Group]) -> list[str]:
    ours = [group.names for group in groups]
    if names is None:  # a checkpoint of an older version: counts and shapes must do
        sizes = [len(group['params']) for group in saved['param_groups']]
        shapes = {row: parameter.shape for row, parameter in enumerate(p for group in groups for p in group.parameters)}
        fits = sizes == [len(group) for group in ours] and all(
            value.shape == shapes.get(row)
            for row, state in saved['state'].items()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.ndim
        )
        return [] if fits else [f'parameters by group: checkpoint {sizes}, config {[len(group) for group in ours]}']
    before, now = ({name for group in each for name in group} for each in (names, ours))
    differences = [f'{name}: trained in the checkpoint, frozen in the config' for name in sorted(before - now)]
    differences += [f'{name}: frozen in the checkpoint, trained in the config' for name in sorted(now - before)]
    if not differences and [set(group) for group in names] != [set(group) for group in ours]:
        counts = [', '.join(str(len(group)) for group in each) for each in (names, ours)]
        differences = [f'parameters by group (frozen parts, layer decay): checkpoint {counts[0]}; config {counts[1]}']
    return differences


def _moments(recipe: Mapping[str, Any]) -> set[str]:
    """Return the names of the moments that this optimizer keeps for a parameter."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.zeros(2, 2)
    try:
        optimizer = build_optimizer(recipe, [Group(1.0, True, ['weight'], [parameter], [''])])
        optimizer.step()
    except (RuntimeError, TypeError, ValueError):  # one that needs more than this, such as a closure
        return set()
    return set(optimizer.state[parameter])


def _mismatch(message: str, differences: Sequence[str]) -> ConfigError:
    more = f'\n... and {len(differences) - 3} more' if len(differences) > 3 else ''
    why = '\n'.join(text[:160] for text in differences[:3]) + more
    return ConfigError(message, where='--resume', why=why, fix=ANEW)


def log_changes(checkpoint: Mapping[str, Any], cfg: RunConfig) -> None:
    """Log the values of the config that differ from those of the checkpoint; they are in effect from here on."""
    before, now = config_in(checkpoint), cfg
    if not before:
        return
    changes = [f'  {key}: {old} -> {new}' for key, old, new in _differences(before, now, '')]
    if changes:
        more = [f'  ... and {len(changes) - MAX_LISTED} more'] if len(changes) > MAX_LISTED else []
        step = checkpoint['step']
        logger.info(
            'changed in the config, in effect from step %d on:\n%s', step, '\n'.join(changes[:MAX_LISTED] + more)
        )
    if before.get('seed') != now.get('seed'):
        logger.warning(
            'the seed was %s and is %s now: the samples come in another order, some twice and some not in this epoch',
            before.get('seed'),
            now.get('seed'),
        )
    averaged = 'ema_updates' in checkpoint
    if averaged and not now.get('ema'):
        logger.warning('weights were averaged (ema) and are not now: the average of the checkpoint is not used')
    if not averaged and now.get('ema'):
        logger.warning('weights are averaged (ema) now and were not: the average begins at those of the checkpoint')


def _differences(before: Any, now: Any, key: str) -> Iterator[tuple[str, str, str]]:
    """Yield `(key path, before, now)` of what differs between two configs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            if name not in QUIET:
                path = f'{key}.{name}' if key else str(name)
                yield from _differences(before.get(name, ABSENT), now.get(name, ABSENT), path)
    elif not same(before, now):
        yield key, *('not given' if value is ABSENT else short(value, 60) for value in (before, now))


def _shape(value: torch.Tensor | None) -> str:
    return 'nothing' if value is None else str(tuple(value.shape))
