"""From a config to a runner that trains: first the data, then the model that fits it, then the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from torch.utils.data import Dataset

from vitdense.arguments import check
from vitdense.config.run_config import RunConfig
from vitdense.device import Precision, choose_precision, torch_threads
from vitdense.distributed.batch_size import Batches, describe_rate, share_batches
from vitdense.distributed.processes import Process, this_process
from vitdense.distributed.sharding import to_device
from vitdense.loading.data_checks import (
    log_metric_limits,
    log_query_limits,
)
from vitdense.loading.evaluation_sets import all_metrics, build_evaluators, evaluation_parts
from vitdense.loading.loaders import num_workers, train_loader
from vitdense.loading.run_data import check_section, extend_data, required_sections, training_data
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.reporting.console import print_table
from vitdense.reporting.history import History, check_metric_early
from vitdense.reporting.run_images import RunImages
from vitdense.reporting.trackers import Trackers
from vitdense.train.compile import compile_network
from vitdense.train.early_stopping import EarlyStopping
from vitdense.train.evaluation import EvaluationLoop
from vitdense.train.optim import build_optimizer, config_groups, group_rows
from vitdense.train.pseudo_labels import make_pseudo_labels
from vitdense.train.runner import DenseRunner
from vitdense.train.saving import Saving
from vitdense.train.schedule import Schedule, make_schedule
from vitdense.train.seeding import seed_everything
from vitdense.train.start import Start
from vitdense.train.step import GuardedOptimWrapper, read_clipping

logger = logging.getLogger('vitdense')


def make_trainer(
    cfg: RunConfig,
    work_dir: str | Path,
    *,
    start: Start | None = None,
    device: str | None = None,
    compiled: bool = False,
    skip_bad_eval: bool = False,
    clear: Callable[[], None] | None = None,
) -> DenseRunner:
    """Return a runner whose `train()` runs the config in `work_dir`, beginning with `start` (default: from scratch).

    `device` defaults to the first GPU, else the CPU. `compiled` compiles the network, `skip_bad_eval` leaves unreadable
    images out of validations. `clear` is called when all parts fit each other, before the first file is written.

    Raises ConfigError when parts do not fit each other, ResourceError where nothing can be compiled.
    """
    process, start = this_process(work_dir, device), start or Start()
    sharded = _is_sharded(cfg, process, compiled)
    seed_everything(cfg.seed)
    cfg = start.config(cfg)
    sections = required_sections(cfg, 'train_dataloader', 'val_dataloader')
    training, validation = training_data(cfg, sections)
    batches = _shared_batches(cfg, sections['train_dataloader'], process)
    evaluators = build_evaluators(cfg.get('val_evaluator')) if validation else {}
    loop = _loop_parts(cfg, process, all_metrics(evaluators), -(-len(training) // batches.total), sharded)
    hooks = [build(hook) for hook in cfg.custom_hooks]
    seed_everything(cfg.seed)
    labelled, metainfo = training.metainfo['classes'], start.metainfo(cfg, training.metainfo)
    if cfg.get('keep_classes'):
        extend_data([training, *validation.values()], metainfo)
    model, cfg = start.model(cfg, metainfo, batches)
    log_query_limits(model, training, name='training')
    log_metric_limits(validation, evaluators, name='validation')
    start.check(cfg, model)
    # 'auto' may choose differently next time: a resumed run keeps to what was chosen
    amp = start.checkpoint['amp'] if start.checkpoint and cfg.amp == 'auto' else cfg.amp
    precision = set_up(model, amp, process, sections['train_dataloader'], compiled)
    logger.info(describe_rate(batches, cfg.optim_wrapper.optimizer.get('lr')))
    first_sample = start.checkpoint['samples_seen'] if start.checkpoint else 0
    loaders = _loaders(
        cfg, sections, process, training, validation, evaluators, first_sample=first_sample, skip_bad=skip_bad_eval
    )
    if clear is not None:
        clear()
    loop['images'] = _images(cfg, model, metainfo, process.work_dir)
    loop['pseudo_labels'] = make_pseudo_labels(cfg, model, labelled, process.device)
    common = dict(training=loop, hooks=hooks, metainfo=metainfo, precision=precision, checkpoint=start.checkpoint)
    optimizer = _optimizer(cfg, to_device(model, process.device, precision, sharded=sharded), precision)
    return DenseRunner(cfg, model, process=process, optim_wrapper=optimizer, **common, **loaders)


def _is_sharded(cfg: RunConfig, process: Process, compiled: bool) -> bool:
    """Whether the processes of the run divide its model. Raises ConfigError for one that is compiled."""
    sharded = cfg.parallel == 'fsdp' and process.world_size > 1
    why, fix = 'compiled networks are not sharded', 'leave --compile out, or use --parallel ddp'
    check(not (compiled and sharded), '--compile', compiled, why, fix)
    return sharded


def set_up(model: DenseModel, amp: str, process: Process, section: Mapping[str, Any], compiled: bool) -> Precision:
    """Set precision, threads and compilation, and log them."""
    precision = choose_precision(amp, process.device)
    model.amp = precision.dtype
    threads = torch_threads(num_workers(section), processes=process.world_size)
    torch.set_num_threads(threads)
    logger.info('%s, %s, %d torch threads; results in %s', process.device, precision.reason, threads, process.work_dir)
    if compiled:
        compile_network(model.to(process.device), process.device)
    return precision


def _shared_batches(cfg: RunConfig, section: dict[str, Any], process: Process) -> Batches:
    """Return the batches of the run; the training `section` gets the share of this process. Raises ConfigError."""
    accumulated = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    batches = share_batches(section.get('batch_size', 1), accumulated, process.world_size)
    section['batch_size'] = batches.share
    return batches


def _optimizer(cfg: RunConfig, model: DenseModel, precision: Precision) -> GuardedOptimWrapper:
    """Build the optimizer of the config's `optim_wrapper`, and print which parts it trains at which rate."""
    section = cfg.optim_wrapper
    groups = config_groups(section, model, split_backbone=bool(cfg.schedule.backbone_warmup_iters))
    optimizer = build_optimizer(section.optimizer, groups)
    if is_main_process():
        rows = group_rows(groups, section.optimizer.lr, optimizer.defaults.get('weight_decay', 0))
        print_table('trained parts', ('part', 'lr', 'with weight decay', 'without'), rows)
    return GuardedOptimWrapper(
        optimizer,
        model,
        accumulative_counts=section.accumulative_counts,
        clipping=read_clipping(section.clip_grad),
        scaled=precision.scaled,
    )


def _schedule(cfg: RunConfig, per_epoch: int) -> Schedule:
    for name in ('schedule', 'optim_wrapper'):
        check_section(cfg, name)
    return make_schedule(**cfg.schedule, steps_per_epoch=per_epoch)


def _loop_parts(
    cfg: RunConfig, process: Process, evaluators: list[Any], per_epoch: int, sharded: bool
) -> dict[str, Any]:
    """Return what `TrainingLoop` uses. Raises ConfigError for names of metrics that no evaluator gives."""
    schedule = _schedule(cfg, per_epoch)
    saving = cfg.get('checkpoint') or dict(interval=None, keep=2, best=None, rule='greater')
    best = saving['best'] if evaluators else None
    check_metric_early(best, evaluators, where='checkpoint.best')
    if cfg.early_stopping:
        check_metric_early(cfg.early_stopping.monitor, evaluators, where='early_stopping.monitor')
    unit = 1 if cfg.schedule.max_epochs is None else per_epoch
    interval = saving['interval'] * unit if saving['interval'] else schedule.val_interval
    rows = max(1, min(50, schedule.max_iters // 60))
    return dict(
        seed=cfg.seed,
        schedule=schedule,
        history=History(process.work_dir, interval=rows, best=best, rule=saving['rule']),
        saving=Saving(process.work_dir, interval=interval, keep=saving['keep'], sharded=sharded),
        trackers=Trackers(cfg.loggers, process.work_dir, cfg),
        ema=cfg.ema,
        early_stopping=EarlyStopping(**cfg.early_stopping) if cfg.early_stopping else None,
    )


def _images(cfg: RunConfig, model: DenseModel, metainfo: Mapping[str, Any], work_dir: Path) -> RunImages | None:
    fields = {task.field for task in model.tasks.values() if task.field}
    return RunImages(work_dir, metainfo, fields, count=cfg.sample_images) if cfg.sample_images else None


def _loaders(
    cfg: RunConfig,
    sections: Mapping[str, Any],
    process: Process,
    training: Dataset,
    validation: Mapping[str, Dataset],
    evaluators: Mapping[str, Sequence[Any]],
    *,
    first_sample: int,
    skip_bad: bool,
) -> dict[str, Any]:
    """Return the loaders of training, from sample `first_sample` of all processes on, and of validation."""
    stream = dict(seed=cfg.seed, **process.loading)
    loader = train_loader(sections['train_dataloader'], training, start=first_sample // process.world_size, **stream)
    if not validation:
        return dict(train_dataloader=loader)
    section = sections['val_dataloader']
    val_loader, evaluator = evaluation_parts(section, validation, evaluators, skip_bad=skip_bad, **stream)
    validated = dict(val_evaluator=evaluator, val_cfg=dict(type=EvaluationLoop, mode='val'))
    return dict(train_dataloader=loader, val_dataloader=val_loader, **validated)
