"""What `tools/train.py` does with its arguments: prepare a work directory, train, and hand over the results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process

from vitdense.arguments import check
from vitdense.checkpoints.head_files import extract_head, save_head
from vitdense.checkpoints.model_folder import save_model_folder
from vitdense.checkpoints.omitted_weights import merge_and_complete
from vitdense.checkpoints.resumable import read_resumable
from vitdense.checkpoints.run import check_checksum, delete_temporary_files, find_checkpoint, read_checkpoint, steps_in
from vitdense.checkpoints.shard_folder import is_shard_folder
from vitdense.checkpoints.work_dir import (
    ENCODER,
    copy_history,
    locked,
    move_aside,
    move_later,
    refuse_files_in_the_way,
)
from vitdense.commands.old_classes import old_class_config, report_old_classes
from vitdense.config.kept_classes import with_kept_classes
from vitdense.config.load import image_recipe
from vitdense.config.run_config import RunConfig, work_folder
from vitdense.distributed.agreement import on_first
from vitdense.distributed.processes import (
    join_processes,
    leave_processes,
    lost_processes_explained,
    restarted_since,
)
from vitdense.distributed.sharding import gather, is_sharded
from vitdense.errors import CheckpointError, DiskError, ResourceError
from vitdense.loading.evaluation_sets import first_dataset
from vitdense.loading.run_data import evaluation_data, extend_data
from vitdense.multihead.add_head import choose_start, requested_head
from vitdense.protocols import EncoderNetwork
from vitdense.reporting.console import start_logging
from vitdense.reporting.next_commands import tool_command
from vitdense.reporting.run_images import write_sample
from vitdense.storage.atomic import disk_fix, finite, make_folder
from vitdense.storage.weights import save_weights
from vitdense.train.build import make_trainer
from vitdense.train.compile import explained
from vitdense.train.preemption import leave_on_signal
from vitdense.train.runner import DenseRunner
from vitdense.train.saving import best_content
from vitdense.train.start import build_model

logger = logging.getLogger('vitdense')


def train(
    cfg: RunConfig,
    *,
    work_dir: str | Path | None = None,
    resume: str | None = None,
    weights: str | None = None,
    add_head: str | None = None,
    keep_classes: bool = False,
    old_data: str | Path | None = None,
    device: str | None = None,
    compiled: bool = False,
    skip_bad_eval: bool = False,
) -> DenseRunner:
    """Train the config and return the runner, with everything in the work directory that a run leaves.

    `work_dir` defaults to the config's, else to `work_dirs/` and the name of the config file. `resume` is the path of
    a checkpoint or of a work directory, or 'auto' for the newest whole checkpoint of `work_dir`, if there is one; a
    process that torchrun has started again goes on from that in any case. Without `resume`, what an earlier run left is
    moved to `earlier-N/` once the parts of the new one fit each other.
    `add_head` names the branch of the config that alone is trained, on the model that `weights` lead to
    (`vitdense.multihead.add_head`). `keep_classes` keeps the classes of that model beside those of the data
    (`vitdense.train.pseudo_labels`); `old_data` is a folder with labels of these, on whose validation split the model
    is tested before and after. `skip_bad_eval` leaves unreadable images out of validations, counted beside the scores.
    A folder belongs to one run at a time: ConfigError while another one works in it.
    """
    cfg, weights = requested_head(cfg, add_head, weights)
    why = 'a run that goes on has the weights of its checkpoint, so --resume and --weights exclude each other'
    fix = 'leave --weights out to go on, or --resume to start anew with these weights'
    check(resume is None or weights is None or add_head is not None, '--weights', weights, why, fix)
    cfg = with_kept_classes(cfg, keep_classes, weights)
    old = None if old_data is None else old_class_config(cfg, old_data)
    join_processes(device)
    make_folder(folder := work_folder(cfg, work_dir))
    start_logging(None, keep=True)
    with leave_on_signal(), lost_processes_explained(), locked(folder):
        refuse_files_in_the_way(folder)
        if is_main_process():
            delete_temporary_files(folder)
        checkpoint, content = _read(resume, folder)
        arguments = dict(device=device, compiled=compiled, skip_bad_eval=skip_bad_eval)
        arguments['clear'] = partial(_clear_work_dir, folder, checkpoint, content, resume=resume is not None)
        runner = make_trainer(cfg, folder, start=choose_start(cfg, weights=weights, checkpoint=content), **arguments)
        if old is not None:
            extend_data(evaluation_data(old, old.test_dataloader).values(), runner.metainfo)  # now, not after the run
        _run(runner)
        if old is not None:
            models = {'before': cfg.keep_classes.weights, 'after': folder / 'model'}
            report_old_classes(old, models, runner.train_loop.pseudo_labels.names, folder, device=device)
    leave_processes(runner)
    return runner


def _run(runner: DenseRunner) -> None:
    """Train, and write what a finished run leaves. Raises ResourceError for a full device."""
    try:
        with explained():
            runner.train()
            content = _join_shards(runner) if is_sharded(runner.network_model) else None
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, runner) from error
    if is_main_process():
        finish(runner, content)


def _join_shards(runner: DenseRunner) -> Mapping[str, Any] | None:
    """Put a model that is not sharded into the place of the runner's in the first process, for `finish`.

    All processes call this together. Returns the weights to keep, unless `best.pth` holds them.
    """
    content = None if runner.train_loop.history.best else gather(best_content(runner.train_loop.state()))
    state = gather(runner.network_model.state_dict())
    if is_main_process():
        model = build_model(runner.config, runner.metainfo, pretrained=False)
        model.load_state_dict(state)
        runner.model = model
    return content


def _read(resume: str | None, folder: Path) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the checkpoint to resume and its content; (None, None) for a run from the beginning."""
    checkpoint = on_first(partial(_find, resume, folder))
    content = None if checkpoint is None else read_resumable(checkpoint)
    if content is not None:
        logger.info('going on from %s, step %d', checkpoint, content['step'])
    elif resume:
        logger.info('no checkpoint in %s: starting at the beginning', folder)
    return checkpoint, content


def _clear_work_dir(folder: Path, checkpoint: Path | None, content: Mapping[str, Any] | None, *, resume: bool) -> None:
    """Move what does not belong to the run at hand out of its work directory, and begin its log file."""
    moved = None
    if is_main_process():
        if content is not None and checkpoint.parent.resolve() == folder.resolve():
            moved = move_later(folder, content['step'])
        elif content is not None:
            moved = move_aside(folder)
            copy_history(checkpoint.parent, folder, content['step'])
        elif not resume or steps_in(folder):  # with --resume: damaged ones
            moved = move_aside(folder)
    start_logging(folder)
    if moved is not None:
        what = f'checkpoints after step {content["step"]} were' if content is not None else 'an earlier run was'
        logger.info('%s moved to %s; --resume goes on with a run', what, moved)


def out_of_memory(error: BaseException, runner: DenseRunner) -> ResourceError:
    """Return the error for a full device, with what to change."""
    return ResourceError(
        f'out of memory on {runner.device}',
        where=f'step {runner.iter + 1}, batches of {runner.train_dataloader.batch_size}',
        why=str(error).splitlines()[0],
        fix='lower train_dataloader.batch_size and raise optim_wrapper.accumulative_counts as much; or\n'
        '+model.network.backbone.checkpointing=True, which trades time for memory',
    )


def _find(resume: str | None, folder: Path) -> Path | None:
    """Return the checkpoint to go on from. Raises CheckpointError for a path that leads to none."""
    since = restarted_since()
    newest = None if since is None else find_checkpoint(folder)
    if newest is not None and newest.stat().st_mtime >= since:
        return newest
    if resume is None:
        return None
    if resume == 'auto':
        return find_checkpoint(folder)
    path = Path(resume)
    existing = path if path.is_file() or is_shard_folder(path) else find_checkpoint(path) if path.is_dir() else None
    if existing is not None and existing == path:
        check_checksum(existing)
    if existing is None:
        why = 'the folder holds no whole checkpoint step_*.pth' if path.is_dir() else 'there is no such file'
        if (path / 'model.json').is_file():
            why = f'it is a model folder, which holds weights only: start anew with them by --weights {resume}'
        raise CheckpointError(
            f"no checkpoint at '{resume}'",
            where=f'--resume {resume}',
            why=why,
            fix='give a step_*.pth or the work directory of a run; --resume alone looks into the work directory',
        )
    return existing


def finish(runner: DenseRunner, content: Mapping[str, Any] | None = None) -> None:
    """Write the model folder of the best (or else the last) weights, and log which commands to run next.

    A network that pretrains an encoder also leaves that, as `encoder.safetensors` in timm's names. `content` has
    the last weights where the loop does not. Raises DiskError.
    """
    best = runner.folder / 'best.pth' if runner.train_loop.history.best else None
    content = (content or runner.train_loop.state()) if best is None else read_checkpoint(best)
    try:
        if not runner.config_written:
            runner.dump_config()
        _save_model(runner, content)
        log_next(runner, best or steps_in(runner.folder)[0])
    except OSError as error:
        raise DiskError(
            'the last files of the run could not be written',
            where=str(runner.folder),
            why=str(error),
            fix=f'{disk_fix(error, "see that it can be written to")}, then --resume: the checkpoints are whole, '
            'only the last files are missing',
        ) from error


def _save_model(runner: DenseRunner, content: Mapping[str, Any]) -> None:
    folder, cfg = runner.folder, runner.config
    data = image_recipe(cfg)
    transforms, value_range = data['transforms'], data.get('value_range')
    network = runner.network_model.network
    recipe, state = merge_and_complete(runner.network_model, cfg.model, content['state_dict'])
    added = cfg.get('add_head')
    if added:
        arguments = dict(recipe=recipe, state=state, metainfo=content['metainfo'], transforms=transforms)
        path = save_head(folder / 'heads', extract_head(runner.network_model, added['name'], **arguments))
        logger.info('the head by itself: %s', path)
        transforms = added['transforms']  # the old heads keep theirs
    save_model_folder(
        folder / 'model',
        recipe,
        state,
        metainfo=content['metainfo'],
        transforms=transforms,
        extra={'mean': list(network.mean), 'std': list(network.std), 'step': content['step']}
        | ({'value_range': list(value_range)} if value_range else {})
        | ({'operating_points': points} if (points := content.get('operating_points')) else {})
        | ({'metrics': finite(metrics)} if (metrics := content.get('metrics')) else {})
        | ({'data': [Path(root).name]} if (root := cfg.get('data_root') or data.get('root')) else {}),
    )
    if isinstance(network, EncoderNetwork):
        state = {name.removeprefix('network.'): value for name, value in content['state_dict'].items()}
        save_weights(folder / ENCODER, network.encoder_weights(state))


def log_next(runner: DenseRunner, checkpoint: Path) -> None:
    """Print the scores and the exact commands that test the model and run it on an image."""
    folder = runner.folder
    loader = runner.val_dataloader if runner.val_loop is not None else runner.train_dataloader
    sample = write_sample(first_dataset(loader), folder / 'sample.png')
    best = runner.train_loop.history.best
    if best:
        scores = ', '.join(f'{key} {value:.4f}' for key, value in best.items() if isinstance(value, float))
        logger.info('best at step %d: %s', best['step'], scores)
    logger.info('everything is in %s; next:', folder)
    if runner.config.get('test_dataloader') and runner.config.get('test_evaluator'):
        logger.info('  %s', tool_command('test', folder / 'config.py', checkpoint))
    if (folder / ENCODER).exists():
        option = f'model.network.backbone.pretrained={folder / ENCODER}'
        logger.info('  %s', tool_command('train', 'CONFIG', '--cfg-options', option))
    logger.info('  %s', tool_command('demo', sample, '--model', folder / 'model', '--out', folder / 'demo'))


def read_options(cfg_options: Sequence[str] | None, **values: Any) -> list[str]:
    """Return `--cfg-options` with the tool's own flags (seed, amp, parallel) as options ahead of them."""
    options = [f'{key}={value}' for key, value in values.items() if value is not None]
    return [*options, *(cfg_options or ())]
